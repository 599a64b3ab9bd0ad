# SPDX-License-Identifier: Apache-2.0
# Bad input gets one clear sentence and the right exit code, and leaves nothing behind.
import os
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from e2e import tool

MODEL = "mixtral5_grouped_block_logits"
USAGE, INPUT, NO_MOE, PLAN, OUTPUT = 2, 3, 4, 5, 7


@pytest.fixture
def model(models, tmp_path) -> Path:
    """A copy in a folder of its own, so that everything that a run leaves is seen."""
    return Path(shutil.copy(models[MODEL], tmp_path / "model.pt"))


def convert_fails(code: int, model: Path, *words, size: str | int = 2, output: Path | None = None) -> str:
    """A conversion that fails and changes nothing in the model's folder."""
    before = tool.listing(model.parent)
    sentence = tool.fails(code, "convert", model, f"--ep-size={size}", "-o", output or model.parent / "out", *words)
    assert tool.listing(model.parent) == before
    return sentence


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class TestUnreadableFiles:
    @pytest.mark.parametrize("command", ["inspect", "convert"])
    def test_missing(self, tmp_path, command):
        words = ["-o", tmp_path / "out", "--ep-size", 2] if command == "convert" else []
        assert "gone.pt" in tool.fails(INPUT, command, tmp_path / "gone.pt", *words)
        assert tool.listing(tmp_path) == {}

    def test_empty(self, model):
        overwrite(model, b"")
        assert "empty" in convert_fails(INPUT, model)

    def test_not_a_zip(self, model):
        overwrite(model, b"not a model at all\n" * 100)
        assert "zip" in convert_fails(INPUT, model)

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, model, part):
        whole = model.read_bytes()
        overwrite(model, whole[: int(len(whole) * part)])
        convert_fails(INPUT, model)

    def test_bytes_after_the_end(self, model):
        overwrite(model, model.read_bytes() + b"\0" * 16)
        assert "after" in convert_fails(INPUT, model)

    def test_a_folder(self, tmp_path):
        (tmp_path / "folder").mkdir()
        tool.fails(INPUT, "inspect", tmp_path / "folder")
        convert_fails(INPUT, tmp_path / "folder")

    def test_a_fifo_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.pt")
        tool.fails(INPUT, "inspect", tmp_path / "pipe.pt", timeout=30)

    def test_a_plain_state_dict(self, model):
        torch.save({"weight": torch.zeros(3)}, model)
        assert "TorchScript" in convert_fails(INPUT, model)


def records(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return [info for info in archive.infolist() if info.compress_size > 0]


def data_offset(content: bytes, info: zipfile.ZipInfo) -> int:
    header = content[info.header_offset : info.header_offset + 30]
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def test_a_flipped_bit_in_any_record_is_found(models, tmp_path):
    """LibTorch loads such a file without a word; every record is tried, each in a folder of its own."""
    whole = models[MODEL].read_bytes()
    for number, info in enumerate(records(models[MODEL])):
        if info.filename.endswith(".debug_pkl") and number % 4:
            continue  # there are many, all read alike
        folder = tmp_path / str(number)
        folder.mkdir()
        content = bytearray(whole)
        content[data_offset(whole, info) + info.compress_size // 2] ^= 0x10
        overwrite(folder / "model.pt", bytes(content))
        sentence = convert_fails(INPUT, folder / "model.pt")
        name = info.filename.partition("/")[2]
        assert name in sentence, sentence


class TestModelsThatCannotBeConverted:
    def test_a_dense_model(self, tmp_path):
        class Dense(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

            def forward(self, x):
                return self.down(torch.relu(self.up(x)))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(Dense()).save(str(tmp_path / "dense.pt"))
        assert "no MoE layer" in tool.fails(NO_MOE, "inspect", tmp_path / "dense.pt")
        assert "no MoE layer" in convert_fails(NO_MOE, tmp_path / "dense.pt")

    def test_json_carries_the_failure(self, tmp_path):
        outcome = tool.autoep("inspect", tmp_path / "gone.pt", "--json")
        assert outcome.code == INPUT
        assert outcome.json()["status"] == "INPUT"
        assert outcome.json()["error"] in outcome.err


class TestPlans:
    @pytest.mark.parametrize("size", ["0", "-1", "-8"])
    def test_sizes_below_one(self, model, size):
        assert f"--ep-size cannot be '{size}'" in convert_fails(USAGE, model, size=size)

    @pytest.mark.parametrize("size", ["two", "2.5", "", "99999999999999999999"])
    def test_what_is_not_a_number(self, model, size):
        assert f"--ep-size cannot be '{size}'" in convert_fails(USAGE, model, size=size)

    @pytest.mark.parametrize("size", [3, 5, 16, 9999])
    def test_sizes_that_do_not_divide_the_experts(self, model, size):
        sentence = convert_fails(PLAN, model, size=size)
        assert "1, 2, 4" in sentence and "8" in sentence, sentence

    def test_an_unknown_preset(self, model):
        assert "did you mean 'mixtral'" in convert_fails(USAGE, model, "--preset", "mixtrall")

    def test_the_preset_of_another_family(self, models, tmp_path):
        words = ["--ep-size", 2, "--preset", "qwen3_moe", "-o", tmp_path / "out"]
        assert "family mixtral" in tool.fails(NO_MOE, "convert", models["mixtral5_grouped_lm_fp32"], *words)
        assert tool.listing(tmp_path) == {}

    def test_an_unknown_layout(self, model):
        assert "did you mean 'per-rank'" in convert_fails(USAGE, model, "--layout", "per_rank")

    def test_a_size_given_twice(self, model):
        convert_fails(USAGE, model, "--ep-size", 4)

    def test_a_dry_run_finds_the_same(self, model):
        convert_fails(PLAN, model, "--dry-run", size=3)


class TestOutputs:
    def test_one_that_exists(self, model):
        (model.parent / "out").mkdir()
        (model.parent / "out" / "mine.txt").write_text("keep")
        assert "exists" in convert_fails(OUTPUT, model)

    def test_one_that_exists_and_is_not_ours_is_not_overwritten(self, model):
        (model.parent / "out").mkdir()
        (model.parent / "out" / "mine.txt").write_text("keep")
        convert_fails(OUTPUT, model, "--overwrite")

    def test_the_input_itself(self, model):
        convert_fails(OUTPUT, model, output=model)
        convert_fails(OUTPUT, model, "--overwrite", output=model)

    def test_the_input_by_a_link(self, model):
        (model.parent / "link.pt").symlink_to(model)
        convert_fails(OUTPUT, model, "--overwrite", output=model.parent / "link.pt")

    def test_a_folder_that_contains_the_input_by_any_path(self, model, tmp_path):
        folder = model.parent / "inner"
        folder.mkdir()
        inner = Path(shutil.copy(model, folder / "model.pt"))
        (model.parent / "alias").symlink_to(folder)
        (folder / "autoep.json").write_text("{}")
        for output in [folder, model.parent / "alias", folder / ".." / "inner"]:
            before = tool.listing(model.parent)
            tool.fails(OUTPUT, "convert", inner, "--ep-size", 2, "-o", output, "--overwrite")
            assert tool.listing(model.parent) == before

    def test_a_parent_that_is_missing(self, model):
        convert_fails(OUTPUT, model, output=model.parent / "no" / "out")

    def test_a_read_only_place(self, model):
        tool.fails(OUTPUT, "convert", model, "--ep-size", 2, "-o", "/proc/out")

    def test_a_disk_that_fills_up(self, model):
        """A limit on the size of files stands in for a full disk: writing fails in the middle."""
        before = tool.listing(model.parent)
        limited = f"ulimit -f 64; exec '{tool.cli_path()}' convert '{model}' --ep-size 2 -o '{model.parent / 'out'}'"
        done = subprocess.run(["bash", "-c", limited], env=tool.environment(), capture_output=True, text=True)
        assert done.returncode == OUTPUT, done.stderr
        assert "File too large" in done.stderr
        assert tool.listing(model.parent) == before

    def test_a_model_given_twice_or_an_output_left_out(self, model):
        assert "-o" in tool.fails(USAGE, "convert", model, "--ep-size", 2)
        tool.fails(USAGE, "convert", "--ep-size", 2, "-o", model.parent / "out")

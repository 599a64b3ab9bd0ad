# SPDX-License-Identifier: Apache-2.0
# What a converted directory holds: every source expert byte once, 1/N of them a rank, nothing of the old compute, and the same
# bytes whoever converts where.
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from e2e import cases, manifest, tool
from e2e.cases import Case

BYTE_CASES = [
    Case("mixtral5_grouped_lm_fp32", 4),
    Case("mixtral5_grouped_lm_bf16", 2),
    Case("mixtral4_sparse_if_script_lm_fp32", 2),
    Case("qwen3moe5_batched_block_fp32", 1),
]


def load(path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path))


@pytest.mark.parametrize("case", BYTE_CASES, ids=str)
def test_every_source_byte_is_in_one_shard(case, models, conversions):
    directory = conversions[case]
    source = dict(load(models[case.model]).named_parameters())
    shards = [load_file(path) for path in sorted(directory.glob("experts-*.safetensors"))]
    assert len(shards) == case.ep_size
    covered = {}
    for tensor in manifest.tensors(manifest.read(directory)):
        pieces = [shard.pop(tensor["param"]) for shard in shards]
        assert len({piece.nbytes for piece in pieces}) == 1, "every rank holds the same share"
        canonical = torch.cat(pieces)
        assert list(canonical.shape) == tensor["shape"]
        for part in tensor["source"]:
            found, expected = manifest.canonical_slice(canonical, part), manifest.source_slice(source[part["tensor"]], part)
            assert torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), part
            covered[part["tensor"]] = covered.get(part["tensor"], 0) + expected.numel()
    assert all(not shard for shard in shards), "a shard holds nothing else"
    assert covered == {name: source[name].numel() for name in covered}
    assert {name for name in source if ".experts." in f".{name}"} == covered.keys()


@pytest.mark.parametrize("case", BYTE_CASES, ids=str)
def test_the_model_keeps_everything_else(case, models, conversions):
    import autoep

    autoep.load_library()
    source = dict(load(models[case.model]).named_parameters())
    described = list(manifest.tensors(manifest.read(conversions[case])))
    moved = {part["tensor"] for tensor in described for part in tensor["source"]}
    model = dict(load(conversions[case] / "model.pt").named_parameters())
    placeholders = {tensor["param"] for tensor in described}
    assert model.keys() == (source.keys() - moved) | placeholders
    for name in model.keys() - placeholders:
        assert torch.equal(model[name], source[name]), name
    for name in placeholders:
        assert model[name].shape[0] == 0


def test_inspect_shows_the_ep_ops(conversions):
    directory = conversions[Case("mixtral5_grouped_lm_fp32", 2)]
    found = tool.succeed("inspect", directory, "--json").json()
    assert found["ep_size"] == 2 and len(found["layers"]) == 2
    for layer in found["layers"]:
        assert layer["ep_ops"] == {"combine": 1, "dispatch": 1, "experts": 1, "route.linear": 1}
    assert len(set(found["expert_bytes_by_rank"])) == 1
    text = tool.succeed("inspect", directory).out
    assert "dispatch, experts, combine" in text
    assert "rewritten" in tool.succeed("inspect", directory / "model.pt").out


def test_inspect_notices_a_missing_shard(conversions, tmp_path):
    directory = shutil.copytree(conversions[Case("mixtral5_grouped_lm_fp32", 2)], tmp_path / "copy")
    (directory / "experts-00001-of-00002.safetensors").unlink()
    assert "experts-00001-of-00002.safetensors" in tool.fails(3, "inspect", directory)


def test_a_converted_model_is_not_converted_again(conversions, tmp_path):
    tool.fails(4, "convert", conversions[Case("mixtral5_grouped_lm_fp32", 2)] / "model.pt", "--ep-size", 2, "-o", tmp_path / "out")
    assert tool.listing(tmp_path) == {}


@pytest.mark.parametrize("case", [Case("mixtral5_grouped_lm_fp32", 2), Case("mixtral4_sparse_if_script_lm_fp32", 2, "per-rank")], ids=str)
def test_the_same_bytes_from_anywhere(case, models, conversions, tmp_path):
    """Another folder, another working directory, another name of input and output, other environment."""
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(models[case.model], tmp_path / "other-name.pt")
    words = ["convert", Path("..") / Path(copy).name, "--ep-size", case.ep_size, "--layout", case.layout, "-o", "other-output"]
    tool.succeed(*words, cwd=tmp_path / "elsewhere", LANG="C.UTF-8", TZ="Asia/Tokyo", OMP_NUM_THREADS="2")
    assert tool.listing(tmp_path / "elsewhere" / "other-output") == tool.listing(conversions[case])


def test_overwrite_replaces_a_converted_directory(models, tmp_path):
    words = ["convert", models["mixtral5_grouped_block_logits"], "-o", tmp_path / "out"]
    tool.succeed(*words, "--ep-size", 2)
    before = tool.listing(tmp_path)
    tool.fails(7, *words, "--ep-size", 4)
    assert tool.listing(tmp_path) == before
    tool.succeed(*words, "--ep-size", 4, "--overwrite")
    assert manifest.read(tmp_path / "out")["ep_size"] == 4
    assert len(list((tmp_path / "out").glob("experts-*"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dry_run_writes_nothing(models, tmp_path):
    outcome = tool.succeed("convert", models["mixtral5_grouped_block_logits"], "--ep-size", 2, "-o", tmp_path / "out", "--dry-run")
    assert tool.listing(tmp_path) == {}
    assert "written" not in outcome.out


def test_convert_reports_what_it_did(models, tmp_path):
    words = ["convert", models["mixtral5_grouped_lm_fp32"], "--ep-size", 2]
    text = tool.succeed(*words, "-o", tmp_path / "text")
    assert text.last_line.startswith("autoep: OK convert 2 layers, 16 experts -> 2 ranks, ")
    found = tool.succeed(*words, "-o", tmp_path / "json", "--json").json()
    assert found["status"] == "OK"
    assert found["after"]["parameter_bytes"] < found["before"]["parameter_bytes"]
    assert found["after"]["ep_ops"] == 8
    written = {path.name for path in (tmp_path / "json").iterdir()}
    assert written == {file["file"] for file in found["files"]} | {"autoep.json"}


def author_files(model: Path) -> bool:
    """Whether any record names the source file of the model's author."""
    with zipfile.ZipFile(model) as archive:
        return any(b"modeling_mixtral.py" in archive.read(name) for name in archive.namelist())


def test_strip_debug_forgets_the_authors_files(models, conversions, tmp_path):
    case = Case("mixtral5_grouped_lm_fp32", 2)
    assert author_files(conversions[case] / "model.pt")
    tool.succeed("convert", models[case.model], "--ep-size", 2, "-o", tmp_path / "out", "--strip-debug")
    assert not author_files(tmp_path / "out" / "model.pt")
    tool.succeed("verify", tmp_path / "out", "--source", models[case.model])


def test_frozen_models_leave_no_expert_bytes_behind(models, conversions):
    """A frozen file's weights are constants of the graph; they too must be gone."""
    case = Case("mixtral5_grouped_lm_fp32_frozen", 2)
    directory = conversions[case]
    moved = sum(piece["bytes"] for tensor in manifest.tensors(manifest.read(directory)) for piece in tensor["pieces"])
    source, model = models[case.model].stat().st_size, (directory / "model.pt").stat().st_size
    assert moved > source / 2
    assert model < source - 0.9 * moved


def test_cases_name_models_of_the_registry():
    from models.registry import registry

    known = registry()
    assert [case.model for case in cases.ANSWER_CASES + cases.GRADIENT_CASES if case.model not in known] == []

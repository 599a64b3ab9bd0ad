# SPDX-License-Identifier: Apache-2.0
# The command line itself: help, versions, misspelt words, streams, colours, interrupts.
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from e2e import tool

MODEL = "mixtral5_grouped_lm_fp32"


class TestUsage:
    def test_help_lists_subcommands_and_exit_codes(self):
        text = tool.succeed("--help").out
        for word in ["inspect", "convert", "verify", "run", "passes", "presets", "Exit codes:", "  143  "]:
            assert word in text
        assert "_rank" not in text

    @pytest.mark.parametrize("command", ["inspect", "convert", "verify", "run", "passes", "presets", "doctor"])
    def test_every_subcommand_has_help(self, command):
        assert f"autoep {command}" in tool.succeed(command, "--help").out

    def test_version(self):
        assert tool.succeed("--version").out.startswith("autoep 0.1.0")

    def test_no_subcommand(self):
        assert "subcommand" in tool.fails(2)

    def test_misspelt_subcommand(self):
        assert "did you mean 'convert'" in tool.fails(2, "convrt", "x.pt")

    def test_misspelt_option(self):
        assert "did you mean '--ep-size'" in tool.fails(2, "convert", "x.pt", "--ep-siz", "2", "-o", "y")

    def test_a_surplus_word(self, models):
        tool.fails(2, "inspect", models[MODEL], "surplus")

    @pytest.mark.parametrize("words", [["inspect"], ["convert"], ["presets"], ["passes"], ["--color=x", "presets", "list"]])
    def test_other_usage_errors_are_two(self, words):
        tool.fails(2, *words)


class TestStreams:
    def test_data_on_stdout_and_nothing_on_stderr(self, models):
        outcome = tool.succeed("inspect", models[MODEL])
        assert "model.model.layers.0.mlp" in outcome.out
        assert outcome.err == ""

    def test_json_is_one_document(self, models):
        found = tool.succeed("inspect", models[MODEL], "--json").json()
        assert [layer["family"] for layer in found["layers"]] == ["mixtral", "mixtral"]
        assert found["ep_sizes"] == [1, 2, 4, 8]
        assert found["unchecked"]["bytes"] > 0

    def test_colour_only_where_it_is_wanted(self, models):
        assert "\x1b[" not in tool.succeed("inspect", models[MODEL], NO_COLOR="", CLICOLOR_FORCE="").out
        assert "\x1b[" in tool.succeed("inspect", models[MODEL], NO_COLOR="", CLICOLOR_FORCE="1").out
        assert "\x1b[" not in tool.succeed("inspect", models[MODEL], NO_COLOR="1", CLICOLOR_FORCE="1").out
        assert "\x1b[" in tool.succeed("--color", "always", "inspect", models[MODEL]).out

    def test_a_full_stdout_is_an_error(self, models):
        with open("/dev/full", "w") as full:
            done = subprocess.run([tool.cli_path(), "inspect", models[MODEL]], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 7
        assert "No space left on device" in done.stderr


class RouterAlone(torch.nn.Module):
    """Chooses experts, and has none."""

    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Linear(4, 8)

    def forward(self, tokens):
        scores = torch.softmax(self.gate(tokens), dim=-1)
        weights, ids = scores.topk(2, dim=-1)  # the choice
        return weights, ids


class TestInspect:
    def test_says_what_it_did_not_check(self, models):
        assert "Not checked: " in tool.succeed("inspect", models[MODEL]).out

    def test_why_of_a_layer(self, models):
        assert "grouped_mm" in tool.succeed("inspect", models[MODEL], "--why", "model.model.layers.0.mlp").out

    def test_why_of_the_root(self, models):
        assert "grouped_mm" in tool.succeed("inspect", models["mixtral5_grouped_block_logits"], "--why", "(root)").out

    def test_why_of_a_dense_module(self, models):
        assert "self_attn" in tool.fails(4, "inspect", models[MODEL], "--why", "model.model.layers.0.self_attn")

    def test_why_prints_the_line_of_each_near_miss(self, tmp_path):
        """A script keeps its source; of a trace the archive's code is printed."""
        example = torch.zeros(3, 4)
        for name, made, line in (
            ("script", torch.jit.script(RouterAlone()), "weights, ids = scores.topk(2, dim=-1)  # the choice"),
            ("trace", torch.jit.trace(RouterAlone(), example), "torch.topk(scores, 2)"),
        ):
            made.save(tmp_path / f"{name}.pt")
            outcome = tool.autoep("inspect", tmp_path / f"{name}.pt", "--why", "(root)")
            assert outcome.code == 4 and "test_command_line.py:" in outcome.out
            (printed,) = re.findall(r"^    line: (.*)$", outcome.out, re.MULTILINE)
            assert line in printed
            found = tool.autoep("inspect", tmp_path / f"{name}.pt", "--why", "(root)", "--json").json()
            assert found["exit_code"] == 4 and found["layers"] == [] and found["refusals"][0]["line"] == printed

    def test_why_of_a_layer_as_json(self, models):
        found = tool.succeed("inspect", models[MODEL], "--why", "model.model.layers.0.mlp", "--json").json()
        assert [layer["path"] for layer in found["layers"]] == ["model.model.layers.0.mlp"] and found["exit_code"] == 0

    def test_why_of_a_module_that_is_not_there(self, models):
        assert "did you mean 'model.model.layers.0.mlp'" in tool.fails(2, "inspect", models[MODEL], "--why", "model.model.layers.0.mpl")


class TestPresets:
    def test_list_show_and_check(self, tmp_path):
        assert "mixtral" in tool.succeed("presets", "list").out
        text = tool.succeed("presets", "show", "mixtral").out
        (tmp_path / "copy.yaml").write_text(text)
        assert "OK" in tool.succeed("presets", "check", tmp_path / "copy.yaml").out
        (tmp_path / "copy.yaml").write_text(text + "\nsurplus: 1\n")
        assert "copy.yaml:" in tool.fails(2, "presets", "check", tmp_path / "copy.yaml")

    def test_an_unknown_one(self):
        assert "did you mean 'mixtral'" in tool.fails(2, "presets", "show", "mixtrl")

    def test_the_right_preset_converts(self, models, tmp_path):
        tool.succeed("convert", models[MODEL], "--ep-size", 2, "--preset", "mixtral", "-o", tmp_path / "out")


class TestPasses:
    def test_list(self):
        assert "rewrite" in tool.succeed("passes", "list").out

    def test_dump_ir(self, models, tmp_path):
        tool.succeed("convert", models[MODEL], "--ep-size", 2, "-o", tmp_path / "out", "--dump-ir", tmp_path / "ir")
        assert any("autoep::dispatch" in path.read_text() for path in (tmp_path / "ir").iterdir())

    def test_an_unknown_pass_to_disable(self, models, tmp_path):
        tool.fails(2, "convert", models[MODEL], "--ep-size", 2, "-o", tmp_path / "out", "--disable-pass", "no-such-pass")


def processes_naming(path) -> list[str]:
    """Command lines of running processes that name something below `path`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended in between
        if any(str(path).encode() in word for word in words):
            found.append(b" ".join(words).decode())
    return found


class TestInterrupts:
    """A conversion is stopped while it writes, or while its ranks run; nothing is left and the code says which signal."""

    @pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("moment", ["writing", "running ranks"])
    def test_nothing_is_left(self, models, tmp_path, number, code, moment):
        output, temporary = tmp_path / "output", tmp_path / "temporary"
        output.mkdir(), temporary.mkdir()
        words = [tool.cli_path(), "convert", models[MODEL], "--ep-size", "2", "-o", output / "out", "--verify=full"]
        env = tool.environment(TMPDIR=str(temporary))
        running = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not list(output.iterdir()) if moment == "writing" else len(processes_naming(temporary)) < 2:
            assert running.poll() is None and time.monotonic() < deadline, f"no moment of {moment} was seen"
        running.send_signal(number)
        running.communicate(timeout=60)
        assert running.returncode == code
        assert list(output.iterdir()) == list(temporary.iterdir()) == []
        assert processes_naming(temporary) == []


def test_progress_and_colour_on_a_terminal(models):
    """On a terminal the table's header is bold."""
    master, slave = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CLICOLOR_FORCE")} | {"TERM": "xterm"}
    subprocess.run([tool.cli_path(), "presets", "list"], stdout=slave, env=env, check=True)
    os.close(slave)
    assert b"\x1b[1mname" in os.read(master, 4096)
    os.close(master)

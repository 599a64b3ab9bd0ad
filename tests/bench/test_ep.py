# SPDX-License-Identifier: Apache-2.0
"""The benchmark of several ranks, over Gloo with a tiny layer: both pipelines agree, and everything that it promises is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
BF16 = 2e-2  # both round to bf16, in places of their own


@pytest.mark.parametrize("ranks", [2])
def test_tiny_layer_over_gloo(ranks: int, tmp_path: Path) -> None:
    words = ["--device", "cpu", "--ranks", str(ranks), "--shapes", "tiny", "--step-shape", "tiny"]
    numbers = ["--tokens", "8,32", "--repeats", "3", "--json", str(tmp_path / "ep.json")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "bench.ep", *words, *numbers], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ep.json").read_text())
    assert [(cell["mode"], cell["tokens"]) for cell in found["cells"]] == [(m, t) for m in ("forward", "train") for t in (8, 32)]
    for cell in found["cells"]:
        assert cell["apart"] < BF16, cell
        assert all(us > 0 for values in cell["us"].values() for us in values)
        if cell["mode"] == "forward":
            assert cell["traffic"]["row_a_token"]["bytes_away"] <= cell["traffic"]["row_a_choice"]["bytes_away"]
    assert [step["kind"] for step in found["steps"]] == ["ep", "dp"]
    assert all(step["losses"][1] < step["losses"][0] for step in found["steps"])
    assert found["not_run"] == []
    assert "| forward | tiny | 32 |" in done.stdout

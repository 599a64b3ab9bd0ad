# SPDX-License-Identifier: Apache-2.0
"""The ops in real processes, over Gloo and, where there are as many GPUs, over NCCL: as one process computes, checked by opcheck,
compiled, and when a rank dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = ["transport equal uneven skewed named_group same_bits half many", "opcheck compiled compiled_moe"]
RUNS = [
    *(("gloo", 2, cases) for cases in CASES),
    ("gloo", 2, "bad_ids"),  # on a GPU the next call reports them: gpu_test.cc
    *(("nccl", ranks, cases) for ranks in (2, 4, 8) for cases in CASES),
]


def run(backend: str, ranks: int, cases: str, folder: Path) -> tuple[list[int], str]:
    """The exit codes, and what the ranks said."""
    if backend == "nccl" and torch.cuda.device_count() < ranks:
        pytest.skip(f"NCCL needs {ranks} GPUs, and there are {torch.cuda.device_count()}")
    worker = Path(__file__).with_name("group_rank.py")
    command = [sys.executable, str(worker), str(folder / "store"), str(ranks)]
    processes = [
        subprocess.Popen([*command, str(rank), backend, *cases.split()], stderr=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(errors)


@pytest.mark.parametrize(("backend", "ranks", "cases"), RUNS)
def test_processes(backend: str, ranks: int, cases: str, tmp_path: Path) -> None:
    codes, errors = run(backend, ranks, cases, tmp_path)
    assert codes == [0] * ranks, errors
    # Where they can, GPUs fetch from each other's memory: falling back is a warning, and a failure here.
    if backend == "nccl" and torch.cuda.can_device_access_peer(0, 1):
        assert "do not reach each other's memory" not in errors, errors


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_each_ranks_rows_by_themselves(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few: of itself a transport works so only where it pays."""
    monkeypatch.setenv("AUTOEP_PEERS", "steps")
    codes, errors = run("nccl", ranks, CASES[0], tmp_path)
    assert codes == [0] * ranks, errors


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_rank_that_dies(backend: str, tmp_path: Path) -> None:
    codes, errors = run(backend, 2, "dead", tmp_path)
    assert codes[1] == 0
    # Over NCCL the watchdog may end the process before the call returns.
    assert (codes[0] == 0 and "rank 0 saw" in errors) or (backend == "nccl" and codes[0] < 0), errors

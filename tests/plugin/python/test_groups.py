# SPDX-License-Identifier: Apache-2.0
"""autoep.load in real Gloo processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autoep
import python_sample as sample


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    autoep.load_library()
    root = tmp_path_factory.mktemp("directories")
    for ep_size in (1, 2, 4):
        sample.write(root / f"ep{ep_size}", ep_size)
    sample.write(root / "each2", 2, layout="per-rank")
    return root


@pytest.mark.parametrize(("case", "world"), [("two", 2), ("four", 4)])
def test_processes(case: str, world: int, directories: Path, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("group_worker.py")
    command = [sys.executable, str(worker), case]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "store"), str(directories)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(errors)

# SPDX-License-Identifier: Apache-2.0
"""The ops in two real Gloo processes: as one process computes, checked by opcheck, and compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RANKS = 2


@pytest.mark.parametrize("cases", ["equal named_group bad_ids", "opcheck compiled"])
def test_processes(cases: str, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("group_rank.py")
    command = [sys.executable, str(worker), str(tmp_path / "store"), str(RANKS)]
    ranks = [subprocess.Popen([*command, str(rank), *cases.split()], stderr=subprocess.PIPE, text=True) for rank in range(RANKS)]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)

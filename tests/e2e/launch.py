# SPDX-License-Identifier: Apache-2.0
# Runs jobs (see rank.py) on real processes, one a rank, joined by Gloo, or by NCCL on GPUs.
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from e2e import tool

_TIMEOUT = 240


@dataclass
class Job:
    name: str
    directory: Path
    inputs: list[list[Path]]  # for each step, a file a rank
    gradients: bool = False
    plain: bool = False


class Answers:
    """What the ranks of one launch wrote."""

    def __init__(self, folder: Path, world: int):
        self.folder, self.world = folder, world

    def check(self, name: str) -> None:
        for rank in range(self.world):
            error = self.folder / f"{name}.error.rank{rank}"
            assert not error.exists(), f"rank {rank} of {name}: {error.read_text()}"

    def outputs(self, name: str, step: int, rank: int) -> dict[str, torch.Tensor]:
        self.check(name)
        return load_file(self.folder / f"{name}.step{step}.rank{rank}.safetensors")

    def gradients(self, name: str, rank: int) -> dict[str, torch.Tensor]:
        self.check(name)
        return load_file(self.folder / f"{name}.gradients.rank{rank}.safetensors")


def launch(jobs: list[Job], world: int, folder: Path, device: str = "cpu") -> Answers:
    folder.mkdir(parents=True)
    listed = [vars(job) | {"directory": str(job.directory), "inputs": [[str(f) for f in step] for step in job.inputs]} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(listed))
    paths = [str(tool.REPOSITORY / part) for part in ("tests", "plugin/python")] + [os.environ.get("PYTHONPATH", "")]
    env = tool.environment(PYTHONPATH=os.pathsep.join(filter(None, paths)))
    words = [sys.executable, "-m", "e2e.rank", folder / "jobs.json"]
    ranks = [
        subprocess.Popen([*map(str, words), str(rank), str(world), str(folder / "store"), str(folder), device], env=env) for rank in range(world)
    ]
    try:
        codes = [rank.wait(_TIMEOUT) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * world, f"the ranks ended with {codes}"
    return Answers(folder, world)

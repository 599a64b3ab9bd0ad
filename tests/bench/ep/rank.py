# SPDX-License-Identifier: Apache-2.0
"""One rank: python -m bench.ep.rank OPTIONS.json RANK STORE. Rank 0 prints each cell when it has it, and rewrites the file of all."""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import autoep

from bench.ep import measure, report, train
from bench.ep.contenders import Layer
from bench.ep.shapes import shape_of

LINK_BYTES = 2**30
STEP_LAYERS = 4


class Run:
    def __init__(self, options: dict, rank: int):
        self.options, self.rank, self.ranks = options, rank, options["ranks"]
        cuda = options["device"] == "cuda"
        self.device = torch.device("cuda", rank) if cuda else torch.device("cpu")
        self.dtype = torch.bfloat16
        self.cuda = cuda
        self.begin = time.time()
        self.found: dict = {"cells": [], "steps": [], "not_run": []}

    def in_time(self, what: str) -> bool:
        """The same on every rank."""
        late = torch.tensor([float(time.time() - self.begin > self.options["seconds"])], device=self.device)
        dist.all_reduce(late, dist.ReduceOp.MAX)
        if late.item():
            self.found["not_run"].append(what)
        return not late.item()

    def save(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)
            Path(self.options["json"]).write_text(json.dumps(self.found, indent=1) + "\n")

    def conditions(self) -> None:
        size = LINK_BYTES if self.cuda else 2**16
        self.found |= {
            "card": torch.cuda.get_device_name() if self.cuda else "CPU",
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if self.cuda else "",
            "date": time.strftime("%Y-%m-%d"),
            "ranks": self.ranks,
            "dtype": str(self.dtype),
            "link_bytes_a_second": measure.link_rate(self.device, size),
        }
        self.save(report.conditions(self.found))

    def cells(self) -> None:
        for mode in self.options["modes"]:
            for name in self.options["shapes"]:
                layer = Layer.random(shape_of(name, self.ranks), self.rank, self.ranks, self.device, self.dtype)
                for tokens in self.options["tokens"]:
                    if not self.in_time(f"{mode} {name} {tokens}"):
                        continue
                    profiled = self.cuda and self.options["kernels"] and tokens == max(self.options["tokens"])
                    try:
                        cell = {"shape": name} | measure.cell(layer, tokens, mode, self.options["repeats"], self.rank, profiled)
                    except Exception as error:  # on every rank, or the others wait in vain and the process group's timeout ends them
                        self.found["not_run"].append(f"{mode} {name} {tokens}: {type(error).__name__}: {str(error)[:300]}")
                        continue
                    self.found["cells"].append(cell)
                    self.save(report.cell(cell))
                del layer
                if self.cuda:
                    torch.cuda.empty_cache()

    def steps(self) -> None:
        name, tokens = self.options["step_shape"], max(self.options["tokens"])
        for kind in ("ep", "dp"):
            if not self.in_time(f"step {kind}"):
                continue
            step = train.step_cell(kind, shape_of(name, self.ranks), STEP_LAYERS, tokens, self.device, self.dtype, self.options["repeats"])
            self.found["steps"].append({"shape": name} | step)
            self.save(report.step(self.found["steps"][-1]))
            if self.cuda:
                torch.cuda.empty_cache()


def main() -> None:
    options, rank, store = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), sys.argv[3]
    autoep.load_library(options["library"])
    run = Run(options, rank)
    if run.cuda:
        torch.cuda.set_device(run.device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if run.cuda else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=run.ranks,
        timeout=datetime.timedelta(seconds=60),
        device_id=run.device if run.cuda else None,
    )
    run.conditions()
    for part in options["parts"]:
        getattr(run, part)()
    run.save(f"not run: {'; '.join(run.found['not_run']) or 'nothing'}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

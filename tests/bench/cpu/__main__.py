# SPDX-License-Identifier: Apache-2.0
"""Measures one MoE block on the CPU, ours and torch's ways, by the processor time of this process; contenders take turns.

    cd tests && python -m bench.cpu --library LIBAUTOEP.so --dtypes bf16 --json cpu.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.moe.contenders import Layer, inputs, lean, ours, transformers
from bench.moe.shapes import Shape

SHAPES = {"fine": Shape(1024, 384, 32, 4), "coarse": Shape(512, 1792, 8, 2)}
CELLS = [("fine", 512), ("fine", 16), ("coarse", 256), ("coarse", 16)]
DTYPES = {"fp32": torch.float, "bf16": torch.bfloat16}
CONTENDERS: dict[str, Callable[[Layer], Callable]] = {
    "ours": ours,
    "lean": lean,
    "transformers": transformers,
    "transformers-eager": functools.partial(transformers, experts="eager"),
}


def _forward(call: Callable, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return call(x)


def _train(call: Callable, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    leaves = [leaf.requires_grad_() for leaf in (x, *layer.tensors())]
    for leaf in leaves:
        leaf.grad = None
    out = call(x)
    out.backward(torch.ones_like(out))
    return out.detach()


MODES = {"forward": _forward, "train": _train}


def _cell(shape: str, tokens: int, dtype: str, mode: str, contenders: list[str], rounds: int) -> dict:
    torch.manual_seed(tokens)
    layer = Layer.random(SHAPES[shape], device="cpu", dtype=DTYPES[dtype])
    x = inputs(SHAPES[shape], tokens, "cpu", DTYPES[dtype])
    reference = _forward(CONTENDERS["lean"](layer), layer, x).double()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = {name: CONTENDERS[name](layer) for name in contenders}
    errors = {}
    for turn in range(rounds + 1):  # the first warms up
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # who comes after whom changes
            call = calls[name]
            begin = time.process_time()
            out = MODES[mode](call, layer, x)
            if turn > 0:
                times[name].append((time.process_time() - begin) * 1e3)
            errors[name] = ((out.double() - reference).norm() / reference.norm()).item()
    found = {name: {"ms": round(min(times[name]), 2), "error_to_lean": errors[name]} for name in contenders}
    conditions = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "torch": torch.__version__}
    return {"shape": shape, "tokens": tokens, "dtype": dtype, "mode": mode, "rounds": rounds, **conditions, "contenders": found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.cpu", description="One MoE block on the CPU: ours and torch's ways.")
    parser.add_argument("--library", required=True, help="libautoep.so")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contender takes; the least time counts")
    parser.add_argument("--json", type=Path, help="file for the cells")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.ops.load_library(options.library)
    cells = []
    for dtype in options.dtypes:
        for mode in options.modes:
            for shape, tokens in CELLS:
                cell = _cell(shape, tokens, dtype, mode, options.contenders, options.rounds)
                cells.append(cell)
                row = "  ".join(f"{name} {entry['ms']:.2f} ms" for name, entry in cell["contenders"].items())
                print(f"{dtype} {mode} {shape} T={tokens}: {row}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()

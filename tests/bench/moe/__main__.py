# SPDX-License-Identifier: Apache-2.0
"""Measures cells and merges them into a file, so that they can be run one by one:

    cd tests && python -m bench.moe --library LIBAUTOEP.so --shapes qwen3-30b --tokens 16,8192 --modes graph --json moe.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bench.moe import measure, report
from bench.moe.card import Card
from bench.moe.contenders import CONTENDERS, Layer
from bench.moe.shapes import SHAPES


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.moe", description="One MoE block on a GPU: ours and its peers.")
    parser.add_argument("--library", required=True, help="libautoep.so, built with CUDA")
    parser.add_argument("--shapes", type=_list, default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--tokens", type=_list, default=["16", "128", "1024", "8192"])
    parser.add_argument("--modes", type=_list, default=list(measure.MODES), help=f"of {', '.join(measure.MODES)}")
    parser.add_argument("--contenders", type=_list, default=list(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--skew", type=float, default=0.0, help="exponent of Zipf's law for the experts; 0: even")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after this long")
    parser.add_argument("--json", type=Path, help="file to merge the cells into")
    parser.add_argument("--picture", type=Path, help="PNG of all cells in the file")
    options = parser.parse_args()

    begin = time.time()
    torch.ops.load_library(options.library)
    card = Card()
    cells = []
    for name in options.shapes:
        layer = Layer.random(SHAPES[name], options.skew)
        for mode in options.modes:
            for tokens in map(int, options.tokens):
                if time.time() - begin > options.seconds:
                    print(f"not run: {mode} {name} T={tokens}", flush=True)
                    continue
                cell = measure.cell(card, name, layer, tokens, mode, options.contenders, options.repeats, options.skew)
                cells.append(cell)
                print(report.table([cell]), flush=True)
        del layer
        torch.cuda.empty_cache()
    if options.json:
        everything = report.merge(options.json, cells)
        if options.picture:
            report.picture(everything, options.picture)


if __name__ == "__main__":
    main()

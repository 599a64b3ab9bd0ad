# SPDX-License-Identifier: Apache-2.0
"""Starts one process a rank and measures:

    cd tests && python -m bench.ep --ranks 2 --json ep.json --picture ep.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.ep import report
from bench.ep.shapes import NAMES


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _wait(ranks: list[subprocess.Popen], seconds: float) -> list[int | None]:
    """The exit codes; once a rank has failed or time is up, the others are ended."""
    end = time.time() + seconds
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks) and time.time() < end:
        time.sleep(0.1)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    return [rank.returncode for rank in ranks]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.ep", description="One MoE block over several ranks: ours and torch's pipeline.")
    parser.add_argument("--library", help="libautoep.so; by default as autoep.load_library finds it")
    parser.add_argument("--ranks", type=int, default=2, help="processes, each with a GPU of its own")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="over NCCL, or over Gloo")
    parser.add_argument("--parts", type=_list, default=["cells", "steps"])
    parser.add_argument("--modes", type=_list, default=["forward", "train"])
    parser.add_argument("--shapes", type=_list, default=list(NAMES), help=f"of {', '.join(NAMES)}, tiny")
    parser.add_argument("--step-shape", default="qwen3-30b")
    parser.add_argument("--tokens", type=_list, default=["128", "512", "2048", "8192"], help="of a rank")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kernels", action="store_true", help="also profile the kernels of the cells with the most tokens")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no cell after this long")
    parser.add_argument("--kill-after", type=float, default=1e9, help="end the ranks after this many seconds")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.json"
        told = vars(options) | {"json": str(options.json), "picture": None, "tokens": [int(count) for count in options.tokens]}
        file.write_text(json.dumps(told))
        words = [sys.executable, "-m", "bench.ep.rank", str(file)]
        ranks = [subprocess.Popen([*words, str(rank), f"{folder}/store"]) for rank in range(options.ranks)]
        codes = _wait(ranks, options.kill_after)
    if options.json.exists():
        print(report.table(json.loads(options.json.read_text())))
        if options.picture:
            report.picture(options.json, options.picture)
    if any(codes):
        print(f"the ranks ended with {codes}", file=sys.stderr)
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())

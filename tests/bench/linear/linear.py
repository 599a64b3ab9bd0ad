# SPDX-License-Identifier: Apache-2.0
# The tool's own passes against LibTorch's load and inlining of the same file, over graphs of growing size:
#   tools/dev python tests/bench/linear/linear.py
# Fails where the passes take more than a quarter of LibTorch's time, or where that share grows with the graph.
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
SHARE = 0.25
GROWTH = 1.15  # what the share of a repeated run may differ by


@dataclass
class Row:
    layers: int
    nodes: int  # of the inlined graph, constants included
    load: float  # seconds
    inline: float
    detect: float
    passes: float  # all default passes
    checks: float  # the invariants after each
    slowest: str

    @property
    def share(self) -> float:
        return (self.detect + self.passes + self.checks) / (self.load + self.inline)


def make(layers: int, path: Path) -> None:
    """A traced Mixtral of transformers 5, tiny but for its number of layers."""
    sys.path.insert(0, str(TESTS))
    import torch

    from models import transformers5

    warnings.filterwarnings("ignore")
    built = transformers5.lm(
        "mixtral", "grouped_mm", torch.float32, num_hidden_layers=layers, hidden_size=16, intermediate_size=16, num_local_experts=4
    )
    with torch.no_grad():
        example = tuple(built.make_inputs(2, 6, 1).values())
        torch.jit.trace(built.module, example, strict=False, check_trace=False).save(str(path))


def time_libtorch(path: Path) -> dict:
    import torch

    warnings.filterwarnings("ignore")
    begin = time.perf_counter()
    model = torch.jit.load(str(path))
    loaded = time.perf_counter()
    graph = model.inlined_graph
    inlined = time.perf_counter()
    return {"load": loaded - begin, "inline": inlined - loaded, "nodes": sum(1 for _ in graph.nodes())}


def in_a_process(*words: str) -> str:
    """Each step begins with a fresh heap and one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, __file__, *words], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(layers: int, folder: Path, command: str) -> Row:
    path, output = folder / f"{layers}.pt", folder / f"{layers}.out.pt"
    if not path.exists():
        in_a_process("--make", str(path), "--layers", str(layers))
    torch_times = json.loads(in_a_process("--time", str(path)))
    words = [command, "passes", "run", str(path), "--json", "--overwrite", "-o", str(output)]
    report = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    slowest = max(report["passes"], key=lambda each: each["seconds"])
    return Row(
        layers,
        torch_times["nodes"],
        torch_times["load"],
        torch_times["inline"],
        report["detect_seconds"],
        sum(each["seconds"] for each in report["passes"]),
        sum(each["check_seconds"] for each in report["passes"]),
        f"{slowest['pass']} {slowest['seconds']:.2f}",
    )


def print_table(rows: list[Row]) -> None:
    print(f"{'layers':>6} {'nodes':>8} {'load':>7} {'inline':>7} {'detect':>7} {'passes':>7} {'checks':>7} {'share':>6}  slowest pass")
    for row in rows:
        print(
            f"{row.layers:6d} {row.nodes:8d} {row.load:7.2f} {row.inline:7.2f} {row.detect:7.2f} {row.passes:7.2f} "
            f"{row.checks:7.2f} {row.share:6.3f}  {row.slowest}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Time of the passes against LibTorch's, by size of the graph")
    parser.add_argument("--layers", default="375,750,1500", help="numbers of layers, one graph each")
    parser.add_argument("--autoep", default=os.environ.get("AUTOEP_CLI", str(TESTS.parent / "bazel-bin" / "tools" / "autoep")))
    parser.add_argument("--folder", type=Path, help="where the graphs are kept for another run")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(int(args.layers), args.make)
        return 0
    if args.time:
        print(json.dumps(time_libtorch(args.time)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [measure(int(layers), folder, args.autoep) for layers in args.layers.split(",")]
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps([vars(row) | {"share": row.share} for row in rows], indent=2) + "\n")
    good = all(row.share <= SHARE for row in rows) and rows[-1].share <= GROWTH * rows[0].share
    print("OK" if good else f"the share is to stay below {SHARE} and not to grow")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""What was found, as lines for a terminal, as a table and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

CONTENDERS = ("fused", "ours", "torch", "deepep")


def conditions(found: dict) -> str:
    return (
        f"{found['ranks']} ranks on {found['card']}, torch {found['torch']}, NCCL {found['nccl'] or 'none'}, {found['dtype']}, "
        f"{found['date']}; point to point, both ways at once: {found['link_bytes_a_second'] / 1e9:.1f} GB/s each way"
    )


def best(cell: dict, name: str) -> float | None:
    """Microseconds, of the better turn; none where it did not run."""
    return min(cell["us"][name]) if name in cell["us"] else None


def ratio(cell: dict, name: str) -> float:
    return best(cell, "torch") / best(cell, name)


def cell(cell: dict) -> str:
    times = ", ".join(f"{name} {'/'.join(f'{us:.0f}' for us in values)} us" for name, values in cell["us"].items())
    lines = [f"{cell['mode']} {cell['shape']} T={cell['tokens']}: {times}, torch/fused {ratio(cell, 'fused'):.2f}, torch/ours {ratio(cell, 'ours'):.2f}, apart {cell['apart']:.1e}"]
    if "phases_us" in cell:
        lines.append("  ours: " + ", ".join(f"{name} {us:.0f}" for name, us in cell["phases_us"].items()))
        rows = [cell["traffic"][f"row_a_{name}"] for name in ("choice", "token", "token_without_own", "token_ours")]
        lines.append(
            "  exchange: "
            + "; ".join(f"{row['bytes_away'] / 1e6:.1f} MB away in {row['us']:.0f} us = {row['bytes_a_second'] / 1e9:.0f} GB/s" for row in rows)
            + f"; counts over the group {cell['traffic']['counts_us']:.0f} us"
        )
    lines += [f"  kernels of {name}: {kinds}" for name, kinds in cell["kernels_us"].items()]
    return "\n".join(lines)


def step(step: dict) -> str:
    losses = " then ".join(f"{loss:.3f}" for loss in step["losses"])
    return (
        f"step {step['kind']} {step['shape']} {step['layers']} layers T={step['tokens']}: {step['us'] / 1e3:.1f} ms, "
        f"{step['tokens_a_second']} tokens/s, peak {step['peak_bytes'] / 2**30:.1f} GiB, loss {losses}"
    )


def table(found: dict) -> str:
    """Markdown."""
    lines = [f"| mode | shape | tokens a rank | {' | '.join(CONTENDERS)} | torch / fused | torch / ours |", "| --- " * (5 + len(CONTENDERS)) + "|"]
    for one in found["cells"]:
        times = " | ".join(f"{best(one, name):.0f} us" if name in one["us"] else "-" for name in CONTENDERS)
        ratios = " | ".join(f"{ratio(one, name):.2f}" for name in ("fused", "ours"))
        lines.append(f"| {one['mode']} | {one['shape']} | {one['tokens']} | {times} | {ratios} |")
    return "\n".join(lines)


def picture(path: Path, target: Path) -> None:
    """Bars of the times, one group a cell. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(path.read_text())
    modes = list(dict.fromkeys(one["mode"] for one in found["cells"]))
    figure, axes = pyplot.subplots(max(len(modes), 1), 1, figsize=(12, 4 * max(len(modes), 1)), squeeze=False)
    for axis, mode in zip(axes[:, 0], modes):
        here = [one for one in found["cells"] if one["mode"] == mode]
        for i, name in enumerate(CONTENDERS):
            axis.bar([x + 0.2 * i for x in range(len(here))], [best(one, name) or 0 for one in here], 0.2, label=name)
        axis.set_xticks([x + 0.3 for x in range(len(here))], [f"{one['shape']}\nT={one['tokens']}" for one in here], fontsize=7)
        axis.set_yscale("log")
        axis.set_ylabel("us")
        axis.set_title(f"{mode}: {found['ranks']} ranks on {found['card']}")
        axis.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=120)

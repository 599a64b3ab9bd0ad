# SPDX-License-Identifier: Apache-2.0
"""The cells as a table, and as a picture: each contender's share of the floor."""

from __future__ import annotations

import json
from pathlib import Path

OURS = ("ours", "ours-three-ops")


def _key(cell: dict) -> tuple:
    return cell["card"], cell["mode"], cell["shape"], cell["tokens"], cell["skew"]


def merge(path: Path, cells: list[dict]) -> list[dict]:
    """Adds cells to the file. A contender measured again replaces what stood there; one of another run keeps its own floor."""
    known = {_key(cell): cell for cell in (json.loads(path.read_text()) if path.exists() else [])}
    for cell in cells:
        old = known.get(_key(cell))
        if old is not None:
            for name, entry in old["contenders"].items():
                cell["contenders"].setdefault(name, {"floor_us": old["floor_us"], **entry})
        known[_key(cell)] = cell
    merged = [known[key] for key in sorted(known)]
    path.write_text(json.dumps(merged, indent=1) + "\n")
    return merged


def share(cell: dict, entry: dict) -> float | None:
    return entry.get("floor_us", cell["floor_us"]) / min(entry["us"]) if "us" in entry else None


def table(cells: list[dict]) -> str:
    lines = []
    for cell in cells:
        lines.append(
            f"{cell['mode']} {cell['shape']} T={cell['tokens']} skew={cell['skew']} hit={cell['experts_hit']}: floor "
            f"{cell['floor_us']:.0f} us ({cell['card']}, {cell['tflops']:.0f} TFLOP/s, {cell['tbytes']:.2f} TB/s)"
        )
        for name, entry in cell["contenders"].items():
            if "us" not in entry:
                lines.append(f"  {name:24} {entry['failed']}")
                continue
            more = "".join(
                [f", error {entry['error_to_lean']:.1e}" if "error_to_lean" in entry else ""]
                + [f", activations {entry['activations_bytes'] / 2**30:.2f} GiB" if "activations_bytes" in entry else ""]
            )
            spread = " ".join(f"{value:.0f}" for value in entry["us"])
            lines.append(f"  {name:24} {spread} us = {share(cell, entry):.2f}{more}")
        peers = [min(e["us"]) for n, e in cell["contenders"].items() if n not in OURS and "us" in e]
        own = cell["contenders"].get("ours", {})
        if peers and "us" in own:
            lines.append(f"  best peer / ours         {min(peers) / min(own['us']):.2f}")
    return "\n".join(lines)


def picture(cells: list[dict], path: Path) -> None:
    """Bars, one group a cell. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for cell in cells for name in cell["contenders"]))
    modes = list(dict.fromkeys(cell["mode"] for cell in cells))
    figure, rows = pyplot.subplots(len(modes), 1, figsize=(14, 4 * len(modes)), squeeze=False)
    for row, mode in zip(rows[:, 0], modes, strict=True):
        here = [cell for cell in cells if cell["mode"] == mode]
        for i, name in enumerate(names):
            shares = [share(cell, cell["contenders"].get(name, {})) or 0 for cell in here]
            row.bar([x + i * 0.8 / len(names) for x in range(len(here))], shares, 0.8 / len(names), label=name)
        row.set_xticks([x + 0.4 for x in range(len(here))], [f"{c['shape']}\nT={c['tokens']}" for c in here], fontsize=7)
        row.set_ylabel("share of the card's floor")
        row.set_title(f"{mode}, {here[0]['card']}")
        row.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)

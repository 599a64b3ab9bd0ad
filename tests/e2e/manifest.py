# SPDX-License-Identifier: Apache-2.0
# Reads autoep.json and maps canonical expert tensors to the source's, apart from the tool's own code.
import json
from pathlib import Path
from typing import Iterator

import torch


def read(directory: Path) -> dict:
    return json.loads((directory / "autoep.json").read_text())


def tensors(manifest: dict) -> Iterator[dict]:
    for layer in manifest["layers"]:
        yield from layer["tensors"]


def canonical_slice(canonical: torch.Tensor, part: dict) -> torch.Tensor:
    """[experts, rows, ...] of the whole canonical tensor that `part` covers."""
    experts = slice(part["expert_begin"], part["expert_begin"] + part["expert_count"])
    rows = slice(part["row_begin"], part["row_begin"] + part["row_count"])
    return canonical[experts, rows]


def source_slice(source: torch.Tensor, part: dict) -> torch.Tensor:
    """The same elements in the source's tensor."""
    stacked = source if part["expert_count"] > 1 or source.shape[0] == 1 and source.dim() == 3 else source.unsqueeze(0)
    if part["transposed"]:
        stacked = stacked.transpose(1, 2)
    begin, step = part["source_row_begin"], part["source_row_step"]
    return stacked[: part["expert_count"], begin : begin + part["row_count"] * step : step]

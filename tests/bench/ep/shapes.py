# SPDX-License-Identifier: Apache-2.0
"""The layers that are measured, for a number of ranks."""

from __future__ import annotations

from bench.moe.shapes import SHAPES, Shape

SLICE = 32  # DeepSeek-V3's experts on one of eight ranks


def shape_of(name: str, ranks: int) -> Shape:
    """As published; of DeepSeek-V3, as many experts a rank as a rank of eight has."""
    if name == "deepseek-v3-slice":
        return Shape(7168, 2048, SLICE * ranks, 8)
    if name == "tiny":  # of any device
        return Shape(16, 8, 4 * ranks, 2)
    return SHAPES[name]


NAMES = ("qwen3-30b", "deepseek-v3-slice", "mixtral")

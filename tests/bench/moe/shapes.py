# SPDX-License-Identifier: Apache-2.0
"""The layers that are measured, by the sizes that their models publish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    hidden: int
    inner: int
    experts: int
    top_k: int
    activation: str = "silu_gated"
    biases: bool = False
    wide_router: bool = False  # its logits are made of copies of fp32

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden * self.inner * 2


SHAPES = {
    "mixtral": Shape(4096, 14336, 8, 2),
    "qwen3-30b": Shape(2048, 768, 128, 8),
    "gpt-oss": Shape(2880, 2880, 128, 4, "clamped_swiglu", biases=True),
    # One of eight ranks: 32 of the 256 experts, and as many routed rows as the rank gets.
    "deepseek-v3-ep8": Shape(7168, 2048, 32, 8),
    "olmoe": Shape(2048, 1024, 64, 8),
    "glm-4.5-air": Shape(4096, 1408, 128, 8, wide_router=True),
    "odd": Shape(1992, 1112, 37, 3),
}

ACTIVATION_ARGS = {"clamped_swiglu": [1.702, 7.0]}

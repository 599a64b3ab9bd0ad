# SPDX-License-Identifier: Apache-2.0
"""A block as a converted model has it on one rank, to be scripted; alone, for TorchScript reads no postponed annotations."""

from typing import Final

import torch

from bench.moe.shapes import ACTIVATION_ARGS, Shape


class Block(torch.nn.Module):
    router: torch.Tensor
    args: list[float]
    top_k: Final[int]
    activation: Final[str]
    logits_dtype: int | None

    def __init__(self, tensors: dict[str, torch.Tensor | None], shape: Shape) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.activation = shape.activation
        self.args = ACTIVATION_ARGS.get(shape.activation, [])
        self.top_k = shape.top_k
        self.logits_dtype = torch.float32 if shape.wide_router else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = self.route(x)
        return self.experts(x, weights, ids)

    @torch.jit.export
    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.autoep.route(
            x, self.router, None, None, self.logits_dtype, torch.float32, "softmax", 1, 1, "max", 0.0, self.top_k, True, False, None,
            "sum", 0.0, 1.0, None, "bench#0", 1,
        )  # fmt: skip

    @torch.jit.export
    def experts(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.ops.autoep.moe(
            x, ids, weights, None, self.placement, self.gate_up, self.down, self.gate_up_bias, self.down_bias, self.activation,
            self.args, x.dtype, "bench#0", 1,
        )  # fmt: skip

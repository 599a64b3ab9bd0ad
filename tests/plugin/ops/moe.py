# SPDX-License-Identifier: Apache-2.0
"""An MoE layer through the ops, and plainly with torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LAYER = "model.layers.0.mlp#plan"
ABI = 1
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}
NAMES = [*ACTIVATIONS, *(f"{name}_gated" for name in ACTIVATIONS if name != "relu_squared"), "clamped_swiglu", "limited_swiglu"]


def placement(experts: int, ranks: int) -> torch.Tensor:
    slots = experts // ranks
    return torch.tensor([[[expert // slots, expert % slots]] for expert in range(experts)])


def activation_args(name: str) -> list[float]:
    return [1.702, 0.7] if name.endswith("swiglu") else []


def width(name: str, inner: int) -> int:
    return 2 * inner if name.endswith(("gated", "swiglu")) else inner


def run(x, ids, weights, scale, gate_up, down, gate_up_bias, down_bias, name, ranks=1, group="", table=None):
    """gate_up and the rest are this rank's experts."""
    ops = torch.ops.autoep
    if table is None:
        table = placement(gate_up.shape[0] * ranks, ranks).to(x.device)
    rows, offsets, counts, order, received = ops.dispatch(x, ids, scale, table, ranks, group, LAYER, ABI)
    out = ops.experts(rows, offsets, gate_up, down, gate_up_bias, down_bias, name, activation_args(name), LAYER, ABI)
    return ops.combine(out, weights, order, counts, received, table, ranks, group, LAYER, ABI)


def fused(x, ids, weights, scale, gate_up, down, gate_up_bias, down_bias, name, ranks=1, group="", table=None):
    """run, by the one op of several ranks."""
    if table is None:
        table = placement(gate_up.shape[0] * ranks, ranks).to(x.device)
    experts = (gate_up, down, gate_up_bias, down_bias, name, activation_args(name))
    return torch.ops.autoep.moe.ranks(x, ids, weights, scale, table, *experts, None, ranks, group, LAYER, ABI)


def _activate(hidden: torch.Tensor, name: str) -> torch.Tensor:
    if name.endswith("swiglu"):
        alpha, limit = activation_args(name)
        gate, up = hidden.chunk(2, -1)
        gate = gate.clamp(max=limit)
        return (up.clamp(-limit, limit) + (name == "clamped_swiglu")) * gate * torch.sigmoid(alpha * gate)
    if name.endswith("_gated"):
        gate, up = hidden.chunk(2, -1)
        return ACTIVATIONS[name.removesuffix("_gated")](gate) * up
    return ACTIVATIONS[name](hidden)


def reference(x, ids, weights, scale, gate_up, down, gate_up_bias, down_bias, name):
    """All experts on all tokens. gate_up and the rest are the whole layer's."""
    out = torch.zeros_like(x)
    for j in range(ids.shape[1]):
        tokens = x if scale is None else x * scale[:, j, None]
        for expert in range(gate_up.shape[0]):
            hidden = tokens @ gate_up[expert].T
            if gate_up_bias is not None:
                hidden = hidden + gate_up_bias[expert]
            rows = _activate(hidden, name) @ down[expert].T
            if down_bias is not None:
                rows = rows + down_bias[expert]
            factor = (ids[:, j, None] == expert).to(x.dtype)
            out = out + rows * (factor if weights is None else factor * weights[:, j, None])
    return out


def operands(name="silu_gated", tokens=7, k=2, experts=4, hidden=6, inner=5, dtype=torch.double, seed=0):
    """x, ids, weights, scale, gate_up, down, gate_up_bias, down_bias; the last expert gets no rows."""
    random = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.double).to(dtype).requires_grad_()

    ids = torch.rand(tokens, experts - 1, generator=random).topk(k).indices
    return [
        make(tokens, hidden),
        ids,
        make(tokens, k),
        make(tokens, k),
        make(experts, width(name, inner), hidden),
        make(experts, hidden, inner),
        make(experts, width(name, inner)),
        make(experts, hidden),
    ]

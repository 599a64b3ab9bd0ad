# SPDX-License-Identifier: Apache-2.0
"""A training step of a small MoE model: its experts spread over the ranks, against a copy of all of them on each."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.ep.contenders import ABI, LAYER
from bench.ep.measure import Clock, collective_us, slowest
from bench.moe.shapes import Shape


class Block(nn.Module):
    """A norm, a mixing product, and an MoE layer, with residuals."""

    def __init__(self, shape: Shape, ranks: int):
        super().__init__()
        self.shape, self.ranks = shape, ranks
        slots = shape.experts // ranks
        self.mix = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(slots, 2 * shape.inner, shape.hidden).normal_(std=0.02))
        self.down = nn.Parameter(torch.empty(slots, shape.hidden, shape.inner).normal_(std=0.02))
        number = torch.arange(shape.experts)
        self.register_buffer("placement", torch.stack([number // slots, number % slots], -1).unsqueeze(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mix(F.rms_norm(x, x.shape[-1:]))
        hidden = F.rms_norm(x, x.shape[-1:])
        weights, ids = torch.softmax(self.router(hidden), -1, dtype=torch.float32).topk(self.shape.top_k, -1)
        ops, name = torch.ops.autoep, self.shape.activation
        operands = (hidden, ids, weights, None, self.placement, self.gate_up, self.down, None, None, name, [], x.dtype)
        if self.ranks == 1:
            return x + ops.moe(*operands, LAYER, ABI)
        return x + ops.moe.ranks(*operands, self.ranks, "", LAYER, ABI)


class Model(nn.Module):
    def __init__(self, shape: Shape, layers: int, vocabulary: int, ranks: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, shape.hidden)
        self.blocks = nn.Sequential(*(Block(shape, ranks) for _ in range(layers)))
        self.head = nn.Linear(shape.hidden, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(ids)))


def _sum_replicated(model: nn.Module) -> None:
    """The mean over the ranks of what every rank has; an expert's gradient is whole already, but for the division."""
    ranks = dist.get_world_size()
    experts = [p for name, p in model.named_parameters() if name.endswith(("gate_up", "down"))]
    shared = [p for name, p in model.named_parameters() if not name.endswith(("gate_up", "down"))]
    flat = torch.cat([p.grad.flatten() for p in shared])
    dist.all_reduce(flat)
    flat.div_(ranks)
    for parameter, grad in zip(shared, flat.split([p.numel() for p in shared])):
        parameter.grad.copy_(grad.view_as(parameter))
    torch._foreach_div_([p.grad for p in experts], ranks)


def step_cell(kind: str, shape: Shape, layers: int, tokens: int, device: torch.device, dtype: torch.dtype, repeats: int) -> dict:
    """kind: "ep", or "dp": data-parallel only, under DistributedDataParallel. Adam, whose state has the weights' dtype."""
    rank, ranks, vocabulary = dist.get_rank(), dist.get_world_size(), 1024
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = Model(shape, layers, vocabulary, ranks if kind == "ep" else 1)
        torch.set_default_dtype(torch.float32)
        ids = torch.randint(vocabulary, (tokens,), generator=torch.Generator(device).manual_seed(rank))
    run_model = DistributedDataParallel(model, gradient_as_bucket_view=True) if kind == "dp" else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=kind == "ep")
        loss = F.cross_entropy(run_model(ids).float(), ids.roll(-1))
        loss.backward()
        if kind == "ep":
            _sum_replicated(model)
        optimizer.step()
        return loss.detach()

    first = step().item()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    us = collective_us(step, device, repeats, warmup=2)
    Clock(device).finish()
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {
        "kind": kind,
        "tokens": tokens,
        "layers": layers,
        "us": us,
        "tokens_a_second": round(ranks * tokens / (us * 1e-6)),
        "peak_bytes": int(slowest([peak], device)[0]),
        "losses": [first, step().item()],
    }

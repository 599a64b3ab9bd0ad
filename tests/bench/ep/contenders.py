# SPDX-License-Identifier: Apache-2.0
"""Who runs: the plugin's ops, and torch's own pipeline. Each takes the rank's part of a layer once and gives a call from this rank's
hidden states [T, H] to the block's output [T, H]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import all_to_all_single_autograd

from bench.moe.shapes import Shape

LAYER, ABI = "bench#0", 1


@dataclass
class Layer:
    """One block on one of `ranks` ranks: the router whole, the experts its own."""

    shape: Shape
    ranks: int
    router: torch.Tensor  # [E, H]
    gate_up: torch.Tensor  # [S, 2I, H], gate rows first
    down: torch.Tensor  # [S, H, I]
    placement: torch.Tensor  # [E, 1, 2]

    @staticmethod
    def random(shape: Shape, rank: int, ranks: int, device: torch.device, dtype: torch.dtype) -> Layer:
        slots = shape.experts // ranks

        def normal(seed, *sizes):
            torch.manual_seed(seed)
            return torch.empty(*sizes, device=device, dtype=dtype).normal_(std=0.02)

        number = torch.arange(shape.experts, device=device)
        return Layer(
            shape,
            ranks,
            normal(1, shape.experts, shape.hidden),
            normal(2 + rank, slots, 2 * shape.inner, shape.hidden),
            normal(1002 + rank, slots, shape.hidden, shape.inner),
            torch.stack([number // slots, number % slots], -1).unsqueeze(1),
        )

    def tensors(self) -> list[torch.Tensor]:
        """What has gradients."""
        return [self.router, self.gate_up, self.down]


def route(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax, top-k, renormalised: weights fp32, ids int64."""
    probabilities = torch.softmax(F.linear(x, layer.router), -1, dtype=torch.float32)
    weights, ids = torch.topk(probabilities, layer.shape.top_k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def fused_route(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """route by our op."""
    end = ("max", 0.0, layer.shape.top_k, True, False, None, "sum", 0.0, 1.0, None, LAYER, ABI)
    return torch.ops.autoep.route(x, layer.router, None, None, None, torch.float32, "softmax", 1, 1, *end)


def experts(layer: Layer, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    name = layer.shape.activation
    return torch.ops.autoep.experts(rows, offsets, layer.gate_up, layer.down, None, None, name, [], LAYER, ABI)


def fused(layer: Layer) -> Callable:
    """The op that `convert --moe=fused` puts into a model, with the router's."""
    experts = (layer.gate_up, layer.down, None, None, layer.shape.activation, [])

    def call(x):
        weights, ids = fused_route(layer, x)
        end = (x.dtype, layer.ranks, "", LAYER, ABI)
        return torch.ops.autoep.moe.ranks(x, ids, weights, None, layer.placement, *experts, *end)

    return call


def ours(layer: Layer) -> Callable:
    """The ops as a converted model has them, with the router's."""
    ops = torch.ops.autoep
    end = (layer.placement, layer.ranks, "", LAYER, ABI)

    def call(x):
        weights, ids = fused_route(layer, x)
        rows, offsets, counts, order, received = ops.dispatch(x, ids, None, *end)
        return ops.combine(experts(layer, rows, offsets), weights, order, counts, received, *end).to(x.dtype)

    return call


def grouped(layer: Layer, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """torch's grouped products."""
    gate, up = torch._grouped_mm(rows, layer.gate_up.transpose(-2, -1), ends).chunk(2, -1)
    return torch._grouped_mm(F.silu(gate) * up, layer.down.transpose(-2, -1), ends)


def all_to_all(rows: torch.Tensor, out: list[int], into: list[int]) -> torch.Tensor:
    if torch.is_grad_enabled() and rows.requires_grad:
        return all_to_all_single_autograd(rows, out, into, dist.group.WORLD)
    received = rows.new_empty(sum(out), *rows.shape[1:])
    dist.all_to_all_single(received, rows, out, into)
    return received


def exchange_counts(counts: torch.Tensor, ranks: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """counts [E] of this rank's rows: those that come for its experts [N, S], and the rows sent to and received from each rank."""
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts)
    received = received.view(ranks, -1)
    send, receive = torch.stack([counts.view(ranks, -1).sum(1), received.sum(1)]).tolist()
    return received, send, receive


def torch_pipeline(layer: Layer) -> Callable:
    """TorchTitan's arrangement with as little around it as torch allows: rows sorted by expert, all-to-all of counts and of one
    row a choice, the rows grouped by expert, grouped products, and all the way back."""
    ranks, choices = layer.ranks, layer.shape.top_k

    def call(x):
        weights, ids = route(layer, x)
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.zeros(layer.shape.experts, dtype=torch.long, device=x.device).scatter_add_(0, flat, torch.ones_like(flat))
        received, send, receive = exchange_counts(counts, ranks)
        rows = all_to_all(x[order // choices], receive, send)
        slots = torch.arange(received.numel(), device=x.device) % received.shape[1]
        by_expert = torch.argsort(torch.repeat_interleave(slots, received.reshape(-1), output_size=len(rows)), stable=True)
        ends = torch.cumsum(received.sum(0), 0).to(torch.int32)
        done = grouped(layer, rows[by_expert], ends)
        home = all_to_all(torch.empty_like(done).index_copy(0, by_expert, done), send, receive)
        by_choice = torch.empty_like(home).index_copy(0, order, home)
        return (by_choice.view(len(x), choices, -1) * weights.to(x.dtype).unsqueeze(-1)).sum(1)

    return call


CONTENDERS: dict[str, Callable[[Layer], Callable]] = {"fused": fused, "ours": ours, "torch": torch_pipeline}

# SPDX-License-Identifier: Apache-2.0
"""DeepEP's exchange inside one node (its dispatch and combine) around torch's grouped products. Runs where deep_ep is installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from bench.ep.contenders import Layer, grouped, route

try:
    from deep_ep import Buffer
except ImportError:
    Buffer = None

_buffers: dict[int, object] = {}


def _buffer(hidden_bytes: int, ranks: int):
    """Made once for each hidden size, as its own tests size it."""
    if hidden_bytes not in _buffers:
        configs = (Buffer.get_dispatch_config(ranks), Buffer.get_combine_config(ranks))
        size = max(config.get_nvl_buffer_size_hint(hidden_bytes, ranks) for config in configs)
        _buffers[hidden_bytes] = Buffer(dist.group.WORLD, num_nvl_bytes=size)
    return _buffers[hidden_bytes]


def pipeline(layer: Layer) -> Callable:
    """Forward only."""
    buffer = _buffer(layer.shape.hidden * layer.gate_up.element_size(), layer.ranks)
    choices, slots = layer.shape.top_k, layer.gate_up.shape[0]

    def call(x):
        weights, ids = route(layer, x)
        to_rank, _, to_expert, in_rank, _ = buffer.get_dispatch_layout(ids, layer.shape.experts)
        tokens, found, factors, counts, handle, _ = buffer.dispatch(
            x, topk_idx=ids, topk_weights=weights, num_tokens_per_rank=to_rank, is_token_in_rank=in_rank, num_tokens_per_expert=to_expert
        )
        flat = found.reshape(-1)
        order = torch.argsort(torch.where(flat < 0, slots, flat), stable=True)[: sum(counts)]
        ends = torch.tensor(counts).cumsum(0).to(device=x.device, dtype=torch.int32)
        source = order // choices
        done = grouped(layer, tokens[source], ends) * factors.reshape(-1)[order].unsqueeze(1)
        parts = torch.zeros(tokens.shape, dtype=torch.float32, device=x.device).index_add_(0, source, done)
        return buffer.combine(parts.to(x.dtype), handle)[0]

    return call

# SPDX-License-Identifier: Apache-2.0
"""What the card itself can do beside the contenders, and the floor that follows for a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.moe.shapes import Shape


def median_us(call: Callable[[], object], repeats: int, warmup: int = 5) -> float:
    """Median time of one call between two events on the stream, in microseconds."""
    for _ in range(warmup):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph; what it returns keeps being overwritten."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@dataclass(frozen=True)
class Rates:
    """What a card reached."""

    flops: float  # bf16 matrix product of random 8192 x 8192 matrices, FLOP/s
    bytes: float  # the better of a reduction's reads and a copy's reads and writes, byte/s

    def floor_us(self, shape: Shape, tokens: int, hit: int, backward: bool) -> float:
        """The least time of a block whose rows hit `hit` experts: the products at the card's rate or their operands at its
        bandwidth, whichever is longer, then the router's reads and the weighted sum's. Backward is two more products of each
        kind, with twice the weights' bytes (read, and their gradients written)."""
        rows = tokens * shape.top_k
        hidden, inner = shape.hidden, shape.inner
        product = 6 * rows * hidden * inner / self.flops
        moved = hit * shape.expert_bytes + 2 * (tokens * hidden + 2 * rows * inner + rows * hidden)
        ends = 2 * (tokens * hidden + hidden * shape.experts) + 2 * (rows * hidden + tokens * hidden)
        seconds = max(product, moved / self.bytes) + ends / self.bytes
        if backward:
            moved = 2 * hit * shape.expert_bytes + 2 * (6 * rows * hidden + 8 * rows * inner)
            seconds += max(2 * product, moved / self.bytes)
        return seconds * 1e6


class Card:
    """A contender of its own: it takes turns with the others, for a cool card multiplies faster than a warm one."""

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        self._left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        self._right, self._product = torch.randn_like(self._left), torch.empty_like(self._left)
        self._source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
        self._target = torch.empty_like(self._source)

    def rates(self, repeats: int) -> Rates:
        flops = 2 * 8192**3 / (median_us(lambda: torch.mm(self._left, self._right, out=self._product), repeats) * 1e-6)
        size = self._source.numel() * self._source.element_size()
        read = size / (median_us(lambda: self._source.view(torch.int32).amax(), repeats) * 1e-6)
        copy = 2 * size / (median_us(lambda: self._target.copy_(self._source), repeats) * 1e-6)
        return Rates(flops, max(read, copy))

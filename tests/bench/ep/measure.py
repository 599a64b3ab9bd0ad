# SPDX-License-Identifier: Apache-2.0
"""Times over several ranks: all start together, and the slowest rank's time counts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from bench.ep import deepep
from bench.ep.contenders import CONTENDERS, LAYER, ABI, Layer, exchange_counts, experts, fused_route, route


class Clock:
    """Microseconds between two points of this rank's work on its device."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def points(self, count: int) -> list[torch.cuda.Event | None]:
        """Made beforehand: making an event takes time."""
        return [torch.cuda.Event(enable_timing=True) if self.cuda else None for _ in range(count)]

    def mark(self, points: list, i: int) -> None:
        if self.cuda:
            points[i].record()
        else:
            points[i] = time.perf_counter()

    def between(self, begin, end) -> float:
        return begin.elapsed_time(end) * 1e3 if self.cuda else (end - begin) * 1e6

    def finish(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def slowest(values: list[float], device: torch.device) -> list[float]:
    times = torch.tensor(values, dtype=torch.double, device=device)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist()


def median(values: list[float]) -> float:
    return round(sorted(values)[len(values) // 2], 1)


def collective_us(call: Callable[[], object], device: torch.device, repeats: int, warmup: int = 3) -> float:
    """Median over repeats of the slowest rank's time of one call."""
    clock, gate = Clock(device), torch.zeros(1, device=device)
    times = []
    for repeat in range(warmup + repeats):
        points = clock.points(2)
        dist.all_reduce(gate)
        clock.finish()
        clock.mark(points, 0)
        call()
        clock.mark(points, 1)
        clock.finish()
        if repeat >= warmup:
            times.append(clock.between(*points))
    return median(slowest(times, device))


def tokens_for(layer: Layer, count: int, rank: int) -> torch.Tensor:
    torch.manual_seed(100 * count + rank)
    return torch.randn(count, layer.shape.hidden, device=layer.router.device, dtype=layer.router.dtype)


def link_rate(device: torch.device, size: int) -> float:
    """Byte/s that one rank sends while it receives as much, point to point, `size` bytes at once."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    out, into = torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
    ends = [dist.P2POp(dist.isend, out, (rank + 1) % ranks), dist.P2POp(dist.irecv, into, (rank - 1) % ranks)]

    def call():
        for work in dist.batch_isend_irecv(ends):
            work.wait()

    return size / (collective_us(call, device, 5) * 1e-6)


def _rate(rows: int, x: torch.Tensor, us: float) -> dict:
    away = rows * x.shape[1] * x.element_size()
    return {"bytes_away": away, "us": us, "bytes_a_second": away / (us * 1e-6)}


def traffic(layer: Layer, x: torch.Tensor, repeats: int) -> dict:
    """What one way of the exchange moves with one row a choice, and with one a token and rank; and how long torch's own
    all-to-all takes for each, with a rank's own rows and without."""
    _, ids = route(layer, x)
    rank = dist.get_rank()
    ranks = ids // (layer.shape.experts // layer.ranks)
    found = {}
    hits = torch.stack([(ranks == rank).any(1).sum() for rank in range(layer.ranks)])
    for name, sent in (("choice", torch.bincount(ranks.flatten(), minlength=layer.ranks)), ("token", hits)):
        _, send, receive = exchange_counts(sent, layer.ranks)
        rows, into = x.new_ones(sum(send), x.shape[1]), x.new_empty(sum(receive), x.shape[1])
        away_rows = sum(send) - send[rank]
        us = collective_us(lambda: dist.all_to_all_single(into, rows, receive, send), x.device, repeats)  # noqa: B023
        found[f"row_a_{name}"] = _rate(away_rows, x, us)
        # As ours does it: a rank's own rows do not take part.
        send[rank] = receive[rank] = 0
        out, back = rows[:away_rows], into[: sum(receive)]
        us = collective_us(lambda: dist.all_to_all_single(back, out, receive, send), x.device, repeats)  # noqa: B023
        found[f"row_a_{name}_without_own"] = _rate(away_rows, x, us)
        sizes = [torch.empty(layer.ranks, dtype=torch.long, device=x.device) for _ in range(layer.ranks)]
        dist.all_gather(sizes, torch.tensor(send, device=x.device))
        tokens = torch.stack(sizes).cpu()
        us = collective_us(lambda: torch.ops.autoep.all_to_all(out, tokens, ""), x.device, repeats)  # noqa: B023
        found[f"row_a_{name}_ours"] = _rate(away_rows, x, us)
    counts = torch.bincount(ids.flatten(), minlength=layer.shape.experts)
    found["counts_us"] = collective_us(lambda: exchange_counts(counts, layer.ranks), x.device, repeats)
    return found


def phases(layer: Layer, x: torch.Tensor, repeats: int, warmup: int = 3) -> dict[str, float]:
    """Our ops one by one; each with what it waits for."""
    ops, clock, gate = torch.ops.autoep, Clock(x.device), torch.zeros(1, device=x.device)
    end = (layer.placement, layer.ranks, "", LAYER, ABI)
    times: dict[str, list[float]] = {"route": [], "dispatch": [], "experts": [], "combine": []}
    for repeat in range(warmup + repeats):
        points = clock.points(5)
        dist.all_reduce(gate)
        clock.finish()
        clock.mark(points, 0)
        weights, ids = fused_route(layer, x)
        clock.mark(points, 1)
        rows, offsets, counts, order, received = ops.dispatch(x, ids, None, *end)
        clock.mark(points, 2)
        done = experts(layer, rows, offsets)
        clock.mark(points, 3)
        ops.combine(done, weights, order, counts, received, *end)
        clock.mark(points, 4)
        clock.finish()
        if repeat >= warmup:
            for name, begin, after in zip(times, points, points[1:]):
                times[name].append(clock.between(begin, after))
    return {name: median(slowest(values, x.device)) for name, values in times.items()}


def _covered(spans: list[tuple[float, float]], by: list[tuple[float, float]]) -> float:
    """How much of the spans lies within others, which may overlap."""
    merged: list[list[float]] = []
    for begin, end in sorted(by):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return sum(max(0.0, min(end, other[1]) - max(begin, other[0])) for begin, end in spans for other in merged)


def kernels(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Microseconds of this rank's work on the device in one call, by kind; those of NCCL and of a meeting count their waiting for
    the other rank. "fetch": copies by the copy engines; "fetch_hidden": of that, beside kernels that compute."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.setdefault(_kind(event.name.lower()), []).append((event.time_range.start, event.time_range.end))
    found = {kind: sum(end - begin for begin, end in times) / repeats for kind, times in spans.items()}
    computing = spans.get("product", []) + spans.get("rest", [])
    found["fetch_hidden"] = _covered(spans.get("fetch", []), computing) / repeats
    return {kind: round(value, 1) for kind, value in found.items()}


def _kind(name: str) -> str:
    if "nccl" in name:
        return "nccl"
    if any(part in name for part in ("meetkernel", "givekernel", "awaitkernel")):
        return "meet"
    if "memcpy dtod" in name or "memcpy ptop" in name:
        return "fetch"
    return "product" if any(part in name for part in ("gemm", "grouped", "cutlass", "hopper")) else "rest"


def _training(call, layer: Layer, x: torch.Tensor, grad: torch.Tensor) -> Callable:
    def run():
        for leaf in (x, *layer.tensors()):
            leaf.grad = None
        call(x).backward(grad)

    return run


def cell(layer: Layer, count: int, mode: str, repeats: int, rank: int, profiled: bool) -> dict:
    """mode: "forward" or "train", forward and backward."""
    x = tokens_for(layer, count, rank)
    grad = torch.randn_like(x)
    found: dict = {"tokens": count, "mode": mode, "us": {}, "kernels_us": {}}
    runs, answers = {}, {}
    train = mode == "train"
    contenders = CONTENDERS | ({"deepep": deepep.pipeline} if deepep.Buffer and not train else {})
    for leaf in (x, *layer.tensors()):
        leaf.requires_grad_(train)
    with torch.set_grad_enabled(train):
        for name, make in contenders.items():
            call = make(layer)
            runs[name] = _training(call, layer, x, grad) if train else (lambda call=call: call(x))
            answer = runs[name]()
            answers[name] = (x.grad if train else answer).double()
        apart = [(answers[name] - answers["torch"]).norm() / answers["torch"].norm().clamp(min=1e-30) for name in answers]
        found["apart"] = max(slowest([one.item() for one in apart], x.device))
        del answers
        for _ in range(2):  # they take turns
            for name, run in runs.items():
                found["us"].setdefault(name, []).append(collective_us(run, x.device, repeats))
        if profiled:
            for name, run in runs.items():
                found["kernels_us"][name] = kernels(run, 5)
    for leaf in (x, *layer.tensors()):
        leaf.requires_grad_(False)
        leaf.grad = None
    if not train:
        with torch.no_grad():
            found["phases_us"] = phases(layer, x, repeats)
            found["traffic"] = traffic(layer, x, repeats)
    return found

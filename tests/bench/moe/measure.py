# SPDX-License-Identifier: Apache-2.0
"""One cell: a shape, a token count, a mode. Contenders take turns, so that a card that warms up is unfair to none."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from bench.moe.card import Card, Rates, captured, median_us
from bench.moe.contenders import CONTENDERS, Layer, inputs, route

MODES = ("eager", "graph", "train")
ROUNDS = 2  # turns that each contender takes


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def _error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return ((out.double() - reference.double()).norm() / reference.double().norm()).item()


def _inference(call, x: torch.Tensor, mode: str):
    run = lambda: call(x)  # noqa: E731
    with torch.no_grad():
        out = run()
        return (captured(run) if mode == "graph" else run), out


def _training(call, layer: Layer, x: torch.Tensor):
    """Forward and backward; and the peak of memory above weights and gradients."""
    leaves = [x, *layer.tensors()]
    # Where a peer keeps a weight in an order of its own, that is what has the gradient.
    everything = [*leaves, *getattr(call, "leaves", [])]
    for leaf in everything:
        leaf.requires_grad_(True)
    grad = torch.randn_like(x)

    def forget():
        for leaf in everything:
            leaf.grad = None

    def run():
        forget()
        call(x).backward(grad)

    run()
    out = x.grad.clone()
    forget()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return run, out, torch.cuda.max_memory_allocated() - before - gradients


def cell(card: Card, name: str, layer: Layer, tokens: int, mode: str, contenders: Iterable[str], repeats: int, skew: float) -> dict:
    torch.manual_seed(tokens)
    x = inputs(layer.shape, tokens)
    with torch.no_grad():
        hit = route(layer, x)[1].unique().numel()
        reference = CONTENDERS["lean"](layer)(x)
    result = {
        "card": card.name,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "shape": name,
        "tokens": tokens,
        "skew": skew,
        "mode": mode,
        "experts_hit": hit,
        "contenders": {},
    }
    runs = {}
    for contender in contenders:
        entry = result["contenders"][contender] = {}
        try:
            call = CONTENDERS[contender](layer)
            if mode == "train":
                runs[contender], out, activations = _training(call, layer, x)
                entry["activations_bytes"] = activations
            else:
                runs[contender], out = _inference(call, x, mode)
                entry["error_to_lean"] = _error(out, reference)
        except Exception as error:  # a peer that fails is a line in the table
            torch.cuda.synchronize()
            entry["failed"] = _reason(error)
    times: dict[str, list[float]] = {contender: [] for contender in runs}
    rates = []
    for _ in range(ROUNDS):
        rates.append(card.rates(repeats))
        for contender, run in runs.items():
            times[contender].append(median_us(run, repeats))
    best = Rates(max(rate.flops for rate in rates), max(rate.bytes for rate in rates))
    result["tflops"], result["tbytes"] = round(best.flops / 1e12, 1), round(best.bytes / 1e12, 3)
    result["floor_us"] = round(best.floor_us(layer.shape, tokens, hit, mode == "train"), 1)
    for contender, medians in times.items():
        result["contenders"][contender]["us"] = [round(value, 1) for value in medians]
    for leaf in (x, *layer.tensors()):
        leaf.requires_grad_(False)
        leaf.grad = None
    return result

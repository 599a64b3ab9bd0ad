# SPDX-License-Identifier: Apache-2.0
"""Relative L2 errors of one block and of its gradients against fp64, with the routes fixed:

    cd tests && python -m bench.moe.errors --library LIBAUTOEP.so --shapes qwen3-30b --tokens 1024
"""

from __future__ import annotations

import argparse
from unittest import mock

import torch

from bench.moe import contenders
from bench.moe.contenders import CONTENDERS, Layer, inputs, route
from bench.moe.shapes import SHAPES

WEIGHTS = ("gate_up", "down", "gate_up_bias", "down_bias")


def exact(layer: Layer, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """In fp64, expert by expert."""
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, choice = (ids == expert).nonzero(as_tuple=True)
        up_bias, down_bias = (None if bias is None else bias[expert] for bias in (layer.gate_up_bias, layer.down_bias))
        hidden = torch.nn.functional.linear(x[token], layer.gate_up[expert], up_bias)
        answer = torch.nn.functional.linear(contenders._activate(layer, hidden), layer.down[expert], down_bias)
        out = out.index_add(0, token, answer * weights[token, choice, None])
    return out


def results(call, layer: Layer, x: torch.Tensor, weights: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and the gradients of everything but the router."""
    named = {"x": x, "weights": weights} | {name: getattr(layer, name) for name in WEIGHTS if getattr(layer, name) is not None}
    for tensor in named.values():
        tensor.requires_grad_().grad = None
    out = call(x)
    out.backward(grad)
    return {"forward": out.detach()} | {name: tensor.grad for name, tensor in named.items()}


def truths(layer: Layer, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Results in fp64. The layer's weights in fp64 are gone afterwards: gpt-oss' take 25 GB."""
    tensors = {name: getattr(layer, name) for name in WEIGHTS}
    doubles = {name: None if tensor is None else tensor.detach().double() for name, tensor in tensors.items()}
    wide = Layer(layer.shape, layer.router, placement=layer.placement, **doubles)
    weights = weights.double()
    return results(lambda x: exact(wide, x, weights, ids), wide, x.double(), weights, grad.double())


def measure(layer: Layer, tokens: int, names: list[str]) -> dict[str, dict[str, float]]:
    x = inputs(layer.shape, tokens, layer.router.device.type)
    weights, ids = route(layer, x)
    grad = torch.randn_like(x)
    truth = truths(layer, x, weights, ids, grad)
    errors = {}
    for name in names:
        own = weights.clone()
        call = CONTENDERS[name](layer)
        if name == "ours":
            block, call = call, lambda x: block.experts(x, own, ids)  # noqa: B023
        with mock.patch.object(contenders, "route", lambda *_: (own, ids)):  # noqa: B023
            found = results(call, layer, x.clone(), own, grad)
        errors[name] = {key: ((found[key].double() - truth[key]).norm() / truth[key].norm()).item() for key in truth}
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.moe.errors", description="Errors of one MoE block against fp64.")
    parser.add_argument("--library", required=True, help="libautoep.so, built with CUDA")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["qwen3-30b", "gpt-oss", "olmoe", "odd"])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["ours", "lean"])
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    for shape in options.shapes:
        for name, errors in measure(Layer.random(SHAPES[shape]), options.tokens, options.contenders).items():
            print(f"{shape} T={options.tokens} {name}: " + ", ".join(f"{key} {error:.2e}" for key, error in errors.items()), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

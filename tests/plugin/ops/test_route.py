# SPDX-License-Identifier: Apache-2.0
"""autoep::route against the routers that it stands for, bit for bit, with ties and in both precisions."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Callable

import pytest
import torch

import moe

EXPERTS, TOP_K = 16, 4
FLOAT = torch.float32


@dataclass(frozen=True)
class Options:
    """The op's arguments between bias and layer."""

    score_dtype: torch.dtype | None = None
    scores: str = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    group_fill: float = 0.0
    top_k: int = TOP_K
    sorted: bool = True
    weigh_choice: bool = True
    weight_dtype: torch.dtype | None = None
    renorm: str = "none"
    renorm_min: float = 0.0
    scale: float = 1.0
    dtype: torch.dtype | None = None


def route(logits, bias, options):
    return torch.ops.autoep.route(logits, bias, *astuple(options), moe.LAYER, moe.ABI)


def softmax_then_sum(logits, bias):
    probabilities = logits.float().softmax(-1)
    weights, ids = probabilities.topk(TOP_K, -1)
    weights /= weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), ids


def softmax_alone(logits, bias):
    return torch.softmax(logits, dim=1, dtype=FLOAT).topk(TOP_K, dim=-1)


def softmax_of_the_chosen(logits, bias):
    weights, ids = logits.topk(TOP_K, -1)
    return torch.softmax(weights, 1, dtype=weights.dtype), ids


def sigmoid_with_bias(logits, bias):
    scores = torch.sigmoid(logits.float())
    ids = (scores + bias).topk(TOP_K, -1, sorted=False)[1]
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, ids


def clamped(logits, bias):
    scores = torch.softmax(logits, 1, dtype=FLOAT)
    ids = (scores + bias).topk(TOP_K, -1)[1]
    weights = scores.gather(-1, ids)
    return (weights / weights.sum(-1, keepdim=True).clamp(min=0.7)).to(logits.dtype), ids


def keep_groups(choice, group_scores, count, fill):
    best = group_scores.topk(count, -1, sorted=False)[1]
    kept = torch.zeros_like(group_scores).scatter_(1, best, 1)
    groups = group_scores.shape[1]
    mask = kept.unsqueeze(-1).expand(-1, groups, EXPERTS // groups).reshape(-1, EXPERTS)
    return choice.masked_fill(~mask.bool(), fill)


def groups_by_max(logits, bias):
    scores = logits.softmax(-1, dtype=FLOAT)
    limited = keep_groups(scores, scores.view(-1, 4, 4).max(-1).values, 2, 0.0)
    weights, ids = limited.topk(TOP_K, -1, sorted=False)
    return weights * 16.0, ids


def groups_by_top2(logits, bias):
    scores = logits.float().sigmoid()
    choice = scores + bias
    limited = keep_groups(choice, choice.view(-1, 8, 2).topk(2, -1)[0].sum(-1), 4, float("-inf"))
    ids = limited.topk(TOP_K, -1, sorted=False)[1]
    weights = scores.gather(1, ids)
    weights /= weights.sum(-1, keepdim=True) + 1e-20
    return weights * 2.5, ids


def cast_then_normalised(logits, bias):
    scores = logits.float().sigmoid()
    ids = (scores + bias).topk(TOP_K, -1)[1]
    weights = scores.gather(1, ids).to(logits.dtype)
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) * 1.5, ids


WITH_BIAS = Options(FLOAT, "sigmoid", weigh_choice=False)
ROUTERS: dict[str, tuple[Callable, Callable[[torch.dtype], Options]]] = {
    "softmax_then_sum": (softmax_then_sum, lambda own: Options(FLOAT, renorm="sum", dtype=own)),
    "softmax_alone": (softmax_alone, lambda own: Options(FLOAT)),
    "softmax_of_the_chosen": (softmax_of_the_chosen, lambda own: Options(scores="none", weight_dtype=own, renorm="softmax")),
    "sigmoid_with_bias": (
        sigmoid_with_bias,
        lambda own: replace(WITH_BIAS, sorted=False, renorm="sum", renorm_min=1e-20, scale=2.5),
    ),
    "clamped": (clamped, lambda own: Options(FLOAT, weigh_choice=False, renorm="clamp", renorm_min=0.7, dtype=own)),
    "groups_by_max": (
        groups_by_max,
        lambda own: Options(FLOAT, num_groups=4, top_groups=2, sorted=False, scale=16.0),
    ),
    "groups_by_top2": (
        groups_by_top2,
        lambda own: replace(
            WITH_BIAS, num_groups=8, top_groups=4, group_score="top2_sum", group_fill=float("-inf"), sorted=False, renorm="sum",
            renorm_min=1e-20, scale=2.5,
        ),
    ),
    "cast_then_normalised": (
        cast_then_normalised,
        lambda own: replace(WITH_BIAS, weight_dtype=own, renorm="sum", renorm_min=1e-6, scale=1.5),
    ),
}  # fmt: skip


def logits_and_bias(dtype: torch.dtype, tokens: int = 257) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the tokens have tied logits, some all the same."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(tokens, EXPERTS, generator=generator) * 3
    logits[::2] = logits[::2].round()
    logits[: min(4, tokens)] = 1.0
    return logits.to(dtype), torch.rand(EXPERTS, generator=generator).mul_(8).round().div_(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [257, 1, 0])
@pytest.mark.parametrize("name", ROUTERS)
def test_every_bit_is_the_routers(name: str, tokens: int, dtype: torch.dtype) -> None:
    reference, options = ROUTERS[name]
    logits, bias = logits_and_bias(dtype, tokens)
    options = options(dtype)
    weights, ids = reference(logits, bias)
    found = route(logits, None if options.weigh_choice else bias, options)
    assert torch.equal(found[0], weights) and found[0].dtype == weights.dtype
    assert torch.equal(found[1], ids)


@pytest.mark.parametrize("name", ROUTERS)
def test_the_gradient_is_the_routers(name: str) -> None:
    reference, options = ROUTERS[name]
    logits, bias = logits_and_bias(torch.float32)
    options = options(torch.float32)
    grads = []
    for router in (lambda x: reference(x, bias)[0], lambda x: route(x, None if options.weigh_choice else bias, options)[0]):
        leaf = logits.clone().requires_grad_()
        weights = router(leaf)
        grads += torch.autograd.grad((weights * torch.arange(TOP_K)).sum(), leaf)
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", ROUTERS)
def test_opcheck(name: str) -> None:
    logits, bias = logits_and_bias(torch.float32, 9)
    options = ROUTERS[name][1](torch.float32)
    bias = None if options.weigh_choice else bias
    torch.library.opcheck(torch.ops.autoep.route.default, (logits.requires_grad_(), bias, *astuple(options), moe.LAYER, moe.ABI))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("logits_dtype", [None, torch.float64], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_the_product_and_then_route(with_bias: bool, logits_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    options = ROUTERS["groups_by_top2"][1](dtype)
    generator = torch.Generator().manual_seed(3)
    x, gate, gate_bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((33, 24), (EXPERTS, 24), (EXPERTS,)))
    bias = logits_and_bias(dtype, 1)[1]
    operands = [x, gate, gate_bias if with_bias else None]
    results = []
    for inside in (True, False):
        leaves = [None if t is None else t.clone().requires_grad_() for t in operands]
        if inside:
            weights, ids = torch.ops.autoep.route.linear(*leaves, bias, logits_dtype, *astuple(options), moe.LAYER, moe.ABI)
        else:
            cast = [t if t is None or logits_dtype is None else t.to(logits_dtype) for t in leaves]
            weights, ids = route(torch.nn.functional.linear(*cast), bias, options)
        grads = torch.autograd.grad((weights * torch.arange(TOP_K)).sum(), [t for t in leaves if t is not None])
        results.append([weights, ids, *grads])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_opcheck_of_linear() -> None:
    x, gate = torch.randn(9, 24, requires_grad=True), torch.randn(EXPERTS, 24, requires_grad=True)
    options = ROUTERS["softmax_then_sum"][1](torch.float32)
    arguments = (x, gate, None, None, None, *astuple(options), moe.LAYER, moe.ABI)
    torch.library.opcheck(torch.ops.autoep.route.linear, arguments)


REFUSALS = {
    "route does not know scores 'softmin'": Options(scores="softmin"),
    "route does not know renorm 'max'": Options(renorm="max"),
    "route chooses 17 of 16 experts": Options(top_k=17),
    "route chooses 2 of 5 groups": Options(num_groups=5, top_groups=2),
    "route chooses 4 of 16 groups, by top2_sum": Options(num_groups=16, top_groups=4, group_score="top2_sum"),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_refusals_name_the_layer(sentence: str) -> None:
    logits, _ = logits_and_bias(torch.float32)
    with pytest.raises(RuntimeError, match=f"autoep: layer .*: {sentence}"):
        route(logits, None, REFUSALS[sentence])


def test_a_bias_of_another_size_is_refused() -> None:
    logits, bias = logits_and_bias(torch.float32)
    with pytest.raises(RuntimeError, match="one number for each of 16 experts"):
        route(logits, bias[:1], WITH_BIAS)


def test_where_logits_are_not_rounded_only_near_ties_move() -> None:
    """Counts the tokens whose experts differ from those by logits that are rounded to bf16."""
    random = torch.Generator().manual_seed(3)
    x, gate = (torch.randn(n, 64, generator=random).bfloat16() for n in (4096, EXPERTS))
    options = Options(score_dtype=FLOAT)
    end = (moe.LAYER, moe.ABI)
    weights, ids = torch.ops.autoep.route.linear(x, gate, None, None, FLOAT, *astuple(options), *end)
    _, rounded = route(torch.nn.functional.linear(x, gate), None, options)
    exact = (x.double() @ gate.double().T).sort(-1, descending=True).values
    gap = exact[:, TOP_K - 1] - exact[:, TOP_K]
    moved = (ids.sort(-1).values != rounded.sort(-1).values).any(-1)
    # A logit of n bits has a unit in the last place of 2^-7 of its size at most; two of them may be off by half of one each.
    assert (gap[moved] <= exact[moved, TOP_K - 1].abs() * 2**-7).all()
    assert 0 < moved.sum() < 0.05 * len(x)
    torch.testing.assert_close(weights.double(), torch.softmax(x.double() @ gate.double().T, -1).gather(1, ids), rtol=1e-4, atol=1e-6)

# SPDX-License-Identifier: Apache-2.0
"""moe is dispatch, experts and combine of one rank: the same bits and the same gradients."""

from __future__ import annotations

import pytest
import torch

import moe


def _run(x, ids, weights, scale, *operands):
    *experts, name, dtype = operands
    table = moe.placement(experts[0].shape[0], 1)
    return torch.ops.autoep.moe(x, ids, weights, scale, table, *experts, name, moe.activation_args(name), dtype, moe.LAYER, moe.ABI)


def _moe(x, *operands, name="silu_gated", dtype=None):
    return _run(x, *operands, name, dtype or x.dtype)


@pytest.mark.parametrize("name", moe.NAMES)
@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_same_bits_as_the_three_ops(name: str, dtype: torch.dtype) -> None:
    operands = moe.operands(name, dtype=dtype, tokens=33)
    with torch.no_grad():
        assert torch.equal(_moe(*operands, name=name), moe.run(*operands, name))


@pytest.mark.parametrize("missing", [(), (2,), (3,), (6, 7), (2, 3, 6, 7)])
def test_same_gradients_as_the_three_ops(missing: tuple[int, ...]) -> None:
    operands = [None if i in missing else tensor for i, tensor in enumerate(moe.operands())]
    leaves = [tensor for tensor in operands if tensor is not None and tensor.requires_grad]
    actual = torch.autograd.grad(_moe(*operands).square().sum(), leaves)
    expected = torch.autograd.grad(moe.run(*operands, "silu_gated").square().sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_no_second_derivatives() -> None:
    x, ids, weights, _, *rest = moe.operands()
    (grad,) = torch.autograd.grad(_moe(x, ids, weights, None, *rest).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad((grad + x).sum(), x)


def test_output_in_another_dtype() -> None:
    operands = moe.operands(dtype=torch.bfloat16)
    operands[2] = operands[2].detach().float().requires_grad_()
    wide = _moe(*operands, dtype=torch.float)
    assert wide.dtype == torch.float
    assert torch.equal(_moe(*operands), wide.bfloat16())
    with torch.no_grad():
        as_combine = _run(*operands, "silu_gated", None)
    assert as_combine.dtype == torch.float and torch.equal(as_combine, wide)


def test_no_token() -> None:
    operands = moe.operands(tokens=0)
    assert _moe(*operands).shape == operands[0].shape


@pytest.mark.parametrize("dtype", [torch.float, None])
@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(gradient: bool, dtype: torch.dtype | None) -> None:
    operands = [tensor if gradient else tensor.detach() for tensor in moe.operands(dtype=torch.float)]
    end = (dtype, moe.LAYER, moe.ABI)
    x, ids, weights, scale, *experts = operands
    call = (x, ids, weights, scale, moe.placement(4, 1), *experts, "silu_gated", [], *end)
    torch.library.opcheck(torch.ops.autoep.moe.default, call)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({1: torch.full((7, 2), 4)}, "ids holds 4, and there are 4 experts, 0 to 3"),
        ({0: torch.zeros(6, 6, dtype=torch.double)}, "x has 6 tokens, and ids 7"),
        ({1: torch.zeros(7, 2, dtype=torch.int32)}, "ids is Int, and int64 is expected"),
    ],
)
def test_refusals(change: dict, sentence: str) -> None:
    operands = moe.operands()
    for place, tensor in change.items():
        operands[place] = tensor
    with torch.no_grad(), pytest.raises(RuntimeError, match=sentence):
        _moe(*operands)

# SPDX-License-Identifier: Apache-2.0
"""Gradients against finite differences, and the ops against what torch asks of custom ops, on one rank."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import moe

OPS = torch.ops.autoep


@pytest.mark.parametrize("name", moe.NAMES)
def test_gradients_equal_finite_differences(name: str) -> None:
    x, ids, *rest = moe.operands(name)

    def layer(x, *rest):
        return moe.run(x, ids, *rest, name)

    assert torch.autograd.gradcheck(layer, (x, *rest))
    torch.testing.assert_close(layer(x, *rest), moe.reference(x, ids, *rest, name))


@pytest.mark.parametrize("wanted", range(7))
def test_one_operand_alone_may_want_a_gradient(wanted: int) -> None:
    x, ids, *rest = moe.operands()
    leaves = [tensor.detach() for tensor in (x, *rest)]
    leaves[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(moe.run(leaves[0], ids, *leaves[1:], "silu_gated").square().sum(), leaves[wanted])
    (expected,) = torch.autograd.grad(moe.reference(leaves[0], ids, *leaves[1:], "silu_gated").square().sum(), leaves[wanted])
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("missing", [(6,), (7,), (6, 7)])
def test_biases_that_are_not_there(missing: tuple[int, ...]) -> None:
    x, ids, *rest = [None if i in missing else tensor for i, tensor in enumerate(moe.operands())]
    leaves = [tensor for tensor in (x, *rest) if tensor is not None]
    actual = torch.autograd.grad(moe.run(x, ids, *rest, "silu_gated").square().sum(), leaves)
    expected = torch.autograd.grad(moe.reference(x, ids, *rest, "silu_gated").square().sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_no_second_derivatives() -> None:
    x, ids, *rest = moe.operands()
    (grad,) = torch.autograd.grad(moe.run(x, ids, *rest, "silu_gated").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backward is not implemented|not implemented"):
        torch.autograd.grad(grad.sum(), x)


def _calls() -> dict[str, tuple]:
    x, ids, weights, scale, gate_up, down, gate_up_bias, down_bias = moe.operands(dtype=torch.float)
    table = moe.placement(4, 1)
    end = ("", moe.LAYER, moe.ABI)
    outs = OPS.dispatch(x, ids, None, table, 1, *end)
    rows, offsets, counts, order, received = (out.detach().clone() for out in outs)
    plan = (order, counts, received, table)
    plain = [tensor.detach() for tensor in (x, weights, scale, gate_up, down, gate_up_bias, down_bias)]
    px, pweights, pscale, pgate_up, pdown, pgate_up_bias, pdown_bias = plain
    hidden = torch.randn(rows.shape[0], gate_up.shape[1])
    rows_grad = rows.clone().requires_grad_()
    shape = ("silu_gated", [], moe.LAYER)
    return {
        "dispatch": (x, ids, None, table, 1, *end),
        "dispatch scaled": (x, ids, scale, table, 1, *end),
        "dispatch without gradient": (px, ids, pscale, table, 1, *end),
        "experts": (rows_grad, offsets, gate_up, down, None, None, *shape, moe.ABI),
        "experts with biases": (rows_grad, offsets, gate_up, down, gate_up_bias, down_bias, *shape, moe.ABI),
        "experts without gradient": (rows, offsets, pgate_up, pdown, None, None, *shape, moe.ABI),
        "combine": (rows_grad, weights, *plan, 1, *end),
        "combine unweighted": (rows_grad, None, *plan, 1, *end),
        "combine in a wider dtype": (rows_grad.bfloat16().detach().requires_grad_(), weights, *plan, 1, *end),
        "dispatch_backward": (rows, px, pscale, *plan, 1, "", moe.LAYER),
        "dispatch_backward unscaled": (rows, None, None, *plan, 1, "", moe.LAYER),
        "experts_train": (rows, offsets, pgate_up, pdown, pgate_up_bias, pdown_bias, *shape, moe.ABI),
        "experts_backward": (rows, hidden, rows, offsets, pgate_up, pdown, pgate_up_bias, pdown_bias, *shape, [True] * 5),
        "experts_backward of rows": (rows, hidden, rows, offsets, pgate_up, pdown, None, None, *shape, [True] + [False] * 4),
        "combine_backward": (px, rows, pweights, *plan, rows.shape[0], torch.float, 1, "", moe.LAYER),
        "combine_backward unweighted": (px, None, None, *plan, rows.shape[0], torch.float, 1, "", moe.LAYER),
        "record_routes": (ids, pweights, moe.LAYER),
    }


@pytest.mark.parametrize("case", _calls())
def test_opcheck(case: str) -> None:
    torch.library.opcheck(getattr(OPS, case.split()[0]).default, _calls()[case])


def test_compiles_with_its_backward() -> None:
    x, ids, *rest = moe.operands()
    leaves = [x, *rest]

    def layer(x, *rest):
        return moe.run(x, ids, *rest, "silu_gated").square().sum()

    expected = torch.autograd.grad(layer(*leaves), leaves)
    actual = torch.autograd.grad(torch.compile(layer, backend="aot_eager", fullgraph=True)(*leaves), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_fakes_of_two_ranks_on_gpus() -> None:
    """The plan stays on the CPU. No GPU is needed: the tensors are fakes."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.no_grad():
        x, weights = torch.empty(5, 6, device="cuda"), torch.empty(5, 2, device="cuda", dtype=torch.double)
        ids, table = torch.empty(5, 2, device="cuda", dtype=torch.long), torch.empty(4, 1, 2, device="cuda", dtype=torch.long)
        end = (2, "", moe.LAYER)
        rows, offsets, counts, order, received = OPS.dispatch(x, ids, None, table, *end, moe.ABI)
        assert [one.device.type for one in (rows, offsets, counts, order, received)] == ["cuda", "cuda", "cpu", "cuda", "cpu"]
        plan = (order, counts, received, table)
        out = OPS.combine(rows, weights, *plan, *end, moe.ABI)
        assert (out.shape, out.dtype, out.device.type) == ((5, 6), torch.double, "cuda")
        grad_x, grad_scale = OPS.dispatch_backward(rows, x, weights, *plan, *end)
        assert (grad_x.shape, grad_scale.shape, grad_scale.device.type) == ((5, 6), (5, 2), "cuda")
        grad_rows, grad_weights = OPS.combine_backward(out, rows, weights, *plan, rows.shape[0], torch.float, *end)
        assert (grad_rows.shape, grad_rows.dtype, grad_weights.shape) == (rows.shape, torch.float, (5, 2))


def test_no_op_has_a_default_argument() -> None:
    for name in ("dispatch", "experts", "combine", "moe", "route", "record_routes", "load_shard"):
        for overload in getattr(OPS, name).overloads():
            schema = getattr(getattr(OPS, name), overload)._schema
            assert not any(argument.has_default_value() for argument in schema.arguments), schema

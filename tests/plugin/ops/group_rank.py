# SPDX-License-Identifier: Apache-2.0
"""One rank of test_groups.py: python group_rank.py STORE RANKS RANK CASE..."""

from __future__ import annotations

import datetime
import sys

import torch
import torch.distributed as dist

import autoep
import moe

OPS = torch.ops.autoep
NAME = "silu_gated"


def _shards(rank: int, ranks: int) -> tuple[list[list[torch.Tensor]], list[torch.Tensor], list[torch.Tensor]]:
    """Every rank's x, ids, weights and scale; the layer's experts; this rank's experts. All the same on every rank."""
    tokens = [moe.operands(tokens=count, seed=seed)[:4] for seed, count in enumerate([5, 0][:ranks])]
    experts = moe.operands(seed=9)[4:]
    mine = [tensor.detach().chunk(ranks)[rank].clone().requires_grad_() for tensor in experts]
    return tokens, experts, mine


def _check(run, rank: int, ranks: int) -> None:
    """run(x, ids, weights, scale, *experts) on every rank equals the plain layer, with all gradients."""
    tokens, experts, mine = _shards(rank, ranks)
    x, ids, weights, scale = tokens[rank]
    inputs = [x, weights, scale]
    out = run(x, ids, weights, scale, *mine)
    grads = torch.autograd.grad(out.square().sum(), [*inputs, *mine])
    plain = [moe.reference(*theirs, *experts, NAME) for theirs in tokens]
    torch.testing.assert_close(out, plain[rank])
    expected = torch.autograd.grad(plain[rank].square().sum(), inputs, retain_graph=True)
    # An expert's gradient sums over the tokens of all ranks.
    whole = torch.autograd.grad(sum(part.square().sum() for part in plain), experts)
    expected += tuple(grad.chunk(ranks)[rank] for grad in whole)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other)


def equal(rank: int, ranks: int) -> None:
    """Without a name: the default group."""
    _check(lambda *operands: moe.run(*operands, NAME, ranks), rank, ranks)


def named_group(rank: int, ranks: int) -> None:
    group = dist.new_group(list(range(ranks))).group_name
    _check(lambda *operands: moe.run(*operands, NAME, ranks, group), rank, ranks)


def compiled(rank: int, ranks: int) -> None:
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    table = moe.placement(4, ranks)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    def layer(*operands):
        return moe.run(*operands, NAME, ranks, "", table)

    _check(layer, rank, ranks)


def opcheck(rank: int, ranks: int) -> None:
    """Both ranks make the same calls, so every exchange meets its peer."""
    tokens, _, mine = _shards(rank, ranks)
    x, ids, weights, scale = moe.operands(tokens=4, seed=rank)[:4]
    table = moe.placement(4, ranks)
    end = ("", moe.LAYER, moe.ABI)
    rows, offsets, counts, order, received = (
        out.detach().clone() for out in OPS.dispatch(x, ids, None, table, ranks, *end)
    )
    plan = (order, counts, received, table)
    rows_grad = rows.clone().requires_grad_()
    px, pweights, pscale = (tensor.detach() for tensor in (x, weights, scale))
    returned = torch.randn(ids.numel(), x.shape[1], dtype=x.dtype)
    calls = [
        ("dispatch", (x, ids, None, table, ranks, *end)),
        ("dispatch", (x, ids, scale, table, ranks, *end)),
        ("experts", (rows_grad, offsets, *mine, NAME, [], moe.LAYER, moe.ABI)),
        ("combine", (rows_grad, weights, *plan, ranks, *end)),
        ("combine", (rows_grad, None, *plan, ranks, *end)),
        ("combine_train", (rows, pweights, *plan, ranks, *end)),
        ("dispatch_backward", (rows, px, pscale, *plan, ranks, "", moe.LAYER)),
        ("combine_backward", (px, returned, pweights, *plan, rows.shape[0], x.dtype, ranks, "", moe.LAYER)),
    ]
    for name, operands in calls:
        torch.library.opcheck(getattr(OPS, name).default, operands)


def bad_ids(rank: int, ranks: int) -> None:
    """One rank's mistake is an error on every rank, and the group works on."""
    tokens, _, mine = _shards(rank, ranks)
    x, ids, weights, scale = tokens[0]
    wrong = ids.clone()
    if rank == 1:
        wrong[0, 0] = 4
    try:
        moe.run(x, wrong, weights, scale, *mine, NAME, ranks)
    except RuntimeError as error:
        expected = "ids holds 4" if rank == 1 else "rank 1 of the group failed here"
        assert expected in str(error), error
    else:
        raise AssertionError("not refused")
    equal(rank, ranks)


def main() -> None:
    store, ranks, rank, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    autoep.load_library()
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=120)
    )
    for case in cases:
        globals()[case](rank, ranks)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

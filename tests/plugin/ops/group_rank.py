# SPDX-License-Identifier: Apache-2.0
"""One rank of test_groups.py: python group_rank.py STORE RANKS RANK BACKEND CASE... Over NCCL, each rank has a GPU of its own."""

from __future__ import annotations

import datetime
import os
import sys
import time

import torch
import torch.distributed as dist

import autoep
import moe

OPS = torch.ops.autoep
NAME = "silu_gated"
EXPERTS = 8
TIMEOUT = {"gloo": 120, "nccl": 20}  # seconds

# Of this process: set once, in main. NCCL's ranks run what a model on a GPU runs, in fp32.
DEVICE, DTYPE = torch.device("cpu"), torch.double


def _operands(**options) -> list[torch.Tensor]:
    return [tensor.detach().to(DEVICE).requires_grad_(tensor.requires_grad) for tensor in moe.operands(dtype=DTYPE, **options)]


def _shards(rank: int, ranks: int, counts: tuple[int, ...] = (5, 0, 9, 1, 3, 0, 7, 2)) -> tuple[list[list[torch.Tensor]], list[torch.Tensor], list[torch.Tensor]]:
    """Every rank's x, ids, weights and scale; the layer's experts; this rank's experts. All the same on every rank."""
    tokens = [_operands(tokens=count, seed=seed, experts=EXPERTS)[:4] for seed, count in enumerate(counts[:ranks])]
    experts = _operands(seed=9, experts=EXPERTS)[4:]
    mine = [tensor.detach().chunk(ranks)[rank].clone().requires_grad_() for tensor in experts]
    return tokens, experts, mine


def transport(rank: int, ranks: int) -> None:
    """Rows of several sizes and dtypes, some of them more than came before, and ranks that send nothing."""
    uneven = [[(3 * source + 5 * to) % 7 for to in range(ranks)] for source in range(ranks)]
    one_way = [[40 if to == 0 else 0 for to in range(ranks)] for _ in range(ranks)]
    nothing = [[0] * ranks for _ in range(ranks)]
    many = [[2000 + 300 * source + to for to in range(ranks)] for source in range(ranks)]
    own_only = [[5 if to == source else 0 for to in range(ranks)] for source in range(ranks)]
    for tokens in (nothing, own_only, uneven, one_way, nothing, uneven, own_only, uneven, many, uneven, one_way, many):
        for columns, dtype in ((1, torch.long), (24, torch.bfloat16), (5000, torch.float)):

            def rows_of(source: int, to: int) -> torch.Tensor:
                count = tokens[source][to]  # noqa: B023
                return (100 * source + 10 * to + torch.arange(count * columns) % 7).view(count, columns).to(dtype)  # noqa: B023

            others = [other for other in range(ranks) if other != rank]
            sent = torch.cat([rows_of(rank, to) for to in (*others, rank)]).to(DEVICE)
            expected = torch.cat([rows_of(source, rank) for source in (*others, rank)])
            for _ in range(3):
                got = OPS.all_to_all(sent, torch.tensor(tokens), "")
                assert torch.equal(got.cpu(), expected), (tokens, columns)


def _check(run, rank: int, ranks: int, scaled: bool = True, **shards) -> None:
    """run(x, ids, weights, scale, *experts) on every rank equals the plain layer, with all gradients."""
    tokens, experts, mine = _shards(rank, ranks, **shards)
    if not scaled:
        tokens = [[*theirs[:3], None] for theirs in tokens]
    x, ids, weights, scale = tokens[rank]
    inputs = [tensor for tensor in (x, weights, scale) if tensor is not None]
    out = run(x, ids, weights, scale, *mine)
    grads = torch.autograd.grad(out.square().sum(), [*inputs, *mine])
    plain = [moe.reference(*theirs, *experts, NAME) for theirs in tokens]
    _close(out, plain[rank])
    with torch.no_grad():  # may go another way
        _close(run(x, ids, weights, scale, *mine), plain[rank])
    expected = torch.autograd.grad(plain[rank].square().sum(), inputs, retain_graph=True)
    # An expert's gradient sums over the tokens of all ranks.
    whole = torch.autograd.grad(sum(part.square().sum() for part in plain), experts)
    expected += tuple(grad.chunk(ranks)[rank] for grad in whole)
    for one, other in zip(grads, expected, strict=True):
        _close(one, other)


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    limits = {} if DTYPE == torch.double else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(one, other, **limits)


def _check_both(rank: int, ranks: int, group: str = "", **shards) -> None:
    """The three ops, and the one in their place, which with a scale is the three."""
    _check(lambda *operands: moe.run(*operands, NAME, ranks, group), rank, ranks, **shards)
    for scaled in (False, True):
        _check(lambda *operands: moe.fused(*operands, NAME, ranks, group), rank, ranks, scaled, **shards)


def equal(rank: int, ranks: int) -> None:
    """Without a name: the default group."""
    _check_both(rank, ranks)


def uneven(rank: int, ranks: int) -> None:
    """Some ranks have many tokens, then others; again and again in one group."""
    for counts in ((1, 40, 3, 2, 17, 1, 1, 6), (33, 2, 0, 5, 1, 20, 4, 1), (0,) * 7 + (3,), (0, 3) * 4):
        _check_both(rank, ranks, counts=counts)


def skewed(rank: int, ranks: int) -> None:
    """All tokens of all ranks choose experts of the last rank, or of the first."""
    for expert in (EXPERTS - 2, 0):
        tokens, experts, mine = _shards(rank, ranks)
        x, ids, weights, scale = tokens[rank]
        ids = torch.tensor([expert, expert + 1], device=DEVICE).expand(len(x), 2).contiguous()
        for run, factor in ((moe.run, scale), (moe.fused, None)):
            _close(run(x, ids, weights, factor, *mine, NAME, ranks), moe.reference(x, ids, weights, factor, *experts, NAME))


def same_bits(rank: int, ranks: int) -> None:
    """The same answer every time."""
    tokens, _, mine = _shards(rank, ranks)
    for run in (moe.run, moe.fused):
        first, *others = (run(*tokens[rank][:3], None, *mine, NAME, ranks) for _ in range(4))
        assert all(torch.equal(first, other) for other in others)


def half(rank: int, ranks: int) -> None:
    """bf16 of sizes that a GPU's own kernels take, against fp32 of the same values."""

    def values(tensor):
        return (tensor.bfloat16().float() if tensor.is_floating_point() else tensor).detach().to(DEVICE)

    sizes = {"hidden": 64, "inner": 64, "experts": EXPERTS, "dtype": torch.float}
    made = [[values(tensor) for tensor in moe.operands(tokens=40 + seed, seed=seed, **sizes)] for seed in range(ranks)]
    tokens, experts = [theirs[:3] for theirs in made], made[0][4:]

    def grads_of(run, x, weights, *weights_of_experts):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weights, *weights_of_experts)]
        out = run(*leaves)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    x, ids, weights = tokens[rank]
    mine = [tensor.chunk(ranks)[rank] for tensor in experts]
    halves = [x.bfloat16(), weights, *(tensor.bfloat16() for tensor in mine)]
    found = grads_of(lambda x, weights, *mine: moe.fused(x, ids, weights, None, *mine, NAME, ranks), *halves)
    plain = [
        grads_of(lambda x, weights, *whole, ids=ids: moe.reference(x, ids, weights, None, *whole, NAME), x, weights, *experts)
        for x, ids, weights in tokens
    ]
    # Of the experts' gradients each rank has its part of the ranks' sum.
    expected = plain[rank][:3] + [sum(grads).chunk(ranks)[rank] for grads in zip(*(theirs[3:] for theirs in plain))]
    with torch.no_grad():  # may go another way
        answer = moe.fused(halves[0], ids, weights, None, *halves[2:], NAME, ranks)
    for one, other in zip([answer, *found], [expected[0], *expected], strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < 1e-2, error


def many(rank: int, ranks: int) -> None:
    """So many bytes that a transport may work on some tokens while others travel; the first call makes room for them."""
    sizes = {"hidden": 1024, "inner": 16, "experts": EXPERTS, "dtype": DTYPE}
    share = 1 if DEVICE.type == "cuda" else 100  # no transport of CPUs does that
    for counts in ((16000,) * 8, (16000,) * 8, (30000, 1) * 4, (0, 30000) * 4, (20000, 4000, 0, 17000) * 2):
        made = moe.operands(tokens=counts[rank] // share, seed=rank, **sizes)
        x, ids, weights = (tensor.detach().to(DEVICE) for tensor in made[:3])
        experts = [tensor.detach().to(DEVICE) / 32 for tensor in moe.operands(tokens=1, seed=9, **sizes)[4:]]
        mine = [tensor.chunk(ranks)[rank] for tensor in experts]
        with torch.no_grad():
            expected = moe.reference(x, ids, weights, None, *experts, NAME)
            first = moe.fused(x, ids, weights, None, *mine, NAME, ranks)
            _close(first, expected)
            for _ in range(3):
                assert torch.equal(moe.fused(x, ids, weights, None, *mine, NAME, ranks), first)


def dead(rank: int, ranks: int) -> None:
    """The last rank goes away without a word: the others get an error in bounded time, or NCCL's watchdog ends them."""
    equal(rank, ranks)
    if rank == ranks - 1:
        os._exit(0)
    begin = time.monotonic()
    try:
        equal(rank, ranks)
    except RuntimeError as error:
        seconds = time.monotonic() - begin
        print(f"rank {rank} saw after {seconds:.1f} s: {error}", file=sys.stderr, flush=True)
        os._exit(0 if seconds < TIMEOUT[dist.get_backend()] + 30 else 1)
    os._exit(2)


def named_group(rank: int, ranks: int) -> None:
    _check_both(rank, ranks, dist.new_group(list(range(ranks))).group_name)


def compiled(rank: int, ranks: int) -> None:
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    table = moe.placement(EXPERTS, ranks).to(DEVICE)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    def layer(*operands):
        return moe.run(*operands, NAME, ranks, "", table)

    _check(layer, rank, ranks)


def compiled_moe(rank: int, ranks: int) -> None:
    """Without gradients; with them it says what to do."""
    table = moe.placement(EXPERTS, ranks).to(DEVICE)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    def layer(*operands):
        return moe.fused(*operands, NAME, ranks, "", table)

    tokens, experts, mine = _shards(rank, ranks)
    operands = [*tokens[rank][:3], None]
    with torch.no_grad():
        _close(layer(*operands, *mine), moe.reference(*operands, *experts, NAME))
    try:
        layer(*operands, *mine)
    except Exception as error:
        assert "convert with --moe=ops" in str(error), error
    else:
        raise AssertionError("not refused")


def opcheck(rank: int, ranks: int) -> None:
    """Both ranks make the same calls, so every exchange meets its peer."""
    tokens, _, mine = _shards(rank, ranks)
    x, ids, weights, scale = _operands(tokens=4, seed=rank, experts=EXPERTS)[:4]
    table = moe.placement(EXPERTS, ranks).to(DEVICE)
    end = ("", moe.LAYER, moe.ABI)
    rows, offsets, counts, order, received = (
        out.detach().clone() for out in OPS.dispatch(x, ids, None, table, ranks, *end)
    )
    plan = (order, counts, received, table)
    rows_grad = rows.clone().requires_grad_()
    px, pweights, pscale = (tensor.detach() for tensor in (x, weights, scale))
    calls = [
        ("dispatch", (x, ids, None, table, ranks, *end)),
        ("dispatch", (x, ids, scale, table, ranks, *end)),
        ("experts", (rows_grad, offsets, *mine, NAME, [], moe.LAYER, moe.ABI)),
        ("combine", (rows_grad, weights, *plan, ranks, *end)),
        ("combine", (rows_grad, None, *plan, ranks, *end)),
        ("dispatch_backward", (rows, px, pscale, *plan, ranks, "", moe.LAYER)),
        ("combine_backward", (px, rows, pweights, *plan, rows.shape[0], x.dtype, ranks, "", moe.LAYER)),
    ]
    for name, operands in calls:
        torch.library.opcheck(getattr(OPS, name).default, operands)
    experts = [tensor.detach() for tensor in mine]
    torch.library.opcheck(OPS.moe.ranks, (px, ids, pweights, None, table, *experts, NAME, [], None, ranks, *end))


def bad_ids(rank: int, ranks: int) -> None:
    """One rank's mistake is an error on every rank, and the group works on."""
    tokens, _, mine = _shards(rank, ranks)
    x, ids, weights, scale = tokens[0]
    wrong = ids.clone()
    if rank == 1:
        wrong[0, 0] = EXPERTS
    try:
        moe.run(x, wrong, weights, scale, *mine, NAME, ranks)
    except RuntimeError as error:
        expected = f"ids holds {EXPERTS}" if rank == 1 else "rank 1 of the group failed here"
        assert expected in str(error), error
    else:
        raise AssertionError("not refused")
    equal(rank, ranks)


def main() -> None:
    global DEVICE, DTYPE
    store, ranks, rank, backend, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    torch.set_num_threads(1)
    if backend == "nccl":
        DEVICE, DTYPE = torch.device("cuda", rank), torch.float
        torch.cuda.set_device(DEVICE)
    autoep.load_library()
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=TIMEOUT[backend]),
        device_id=DEVICE if backend == "nccl" else None,
    )
    for case in cases:
        globals()[case](rank, ranks)
        print(f"rank {rank} of {ranks} over {backend}: {case}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Compares the ops on CUDA with the CPU's: every dtype and activation, forward and backward, edge routing, bitwise repeats, no
wait for the host, a CUDA graph. Needs a GPU. Run it by itself: python cuda_smoke.py [LIBAUTOEP]. Exits 1 if anything differs."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import moe  # noqa: E402

TOLERANCE = {torch.double: 1e-10, torch.float: 1e-4, torch.half: 1e-2, torch.bfloat16: 3e-2}
KINKED = {"relu_gated", "relu", "clamped_swiglu", "limited_swiglu"}


def _operands(name="silu_gated", dtype=torch.float, hidden=64, inner=48, ids=None, **sizes):
    operands = moe.operands(name, hidden=hidden, inner=inner, dtype=dtype, **sizes)
    # Weights as large as a trained layer's, so that low precision says something.
    for i in (4, 5, 6, 7):
        operands[i] = (operands[i].detach() / 8).requires_grad_()
    if ids is not None:
        operands[1] = ids
    return operands


def _on(device: str, operands):
    return [t if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in operands]


def _forward_backward(operands, name):
    out = moe.run(*operands, name)
    leaves = [t for t in operands if t is not None and t.requires_grad]
    pattern = torch.arange(out.numel(), dtype=torch.double).mul(0.7).cos().view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * pattern).sum(), leaves)]


def _compare(operands, name, dtype) -> None:
    expected = _forward_backward(_on("cpu", operands), name)
    actual = _forward_backward(_on("cuda", operands), name)
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        _close(one, other, dtype, name, i)


def _close(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype, name: str, i: int) -> None:
    assert one.dtype == other.dtype and one.shape == other.shape, (i, one.dtype, one.shape, other.dtype, other.shape)
    if other.numel() == 0:
        return
    largest = max(other.double().abs().max().item(), 1e-3)
    wrong = (one.cpu().double() - other.double()).abs() > TOLERANCE[dtype] * largest
    # At the kink of a relu or a clamp, rounding alone turns single gradients on or off.
    allowed = 0.1 if dtype.itemsize == 2 and name in KINKED and i > 0 else 0.0
    assert wrong.double().mean() <= allowed, f"{name} {dtype} tensor {i}: {wrong.sum()} of {wrong.numel()} differ"


@contextlib.contextmanager
def _no_host_sync():
    """Fails where the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def activations() -> None:
    for name in moe.NAMES:
        for dtype in TOLERANCE:
            _compare(_operands(name, dtype, tokens=33), name, dtype)


def sizes_without_alignment() -> None:
    for dtype in TOLERANCE:
        _compare(_operands(dtype=dtype, hidden=30, inner=18), "silu_gated", dtype)


def optional_operands() -> None:
    for dtype in TOLERANCE:
        for missing in ([2], [3], [6, 7], [2, 3, 6, 7]):
            operands = _operands(dtype=dtype)
            for i in missing:
                operands[i] = None
            _compare(operands, "silu_gated", dtype)


def fp32_weights() -> None:
    for dtype in (torch.half, torch.bfloat16):
        operands = _operands(dtype=dtype)
        operands[2] = operands[2].detach().float().requires_grad_()
        _compare(operands, "silu_gated", dtype)


def edge_routing() -> None:
    for dtype in (torch.float, torch.bfloat16):
        _compare(_operands(dtype=dtype, tokens=0), "silu_gated", dtype)
        _compare(_operands(dtype=dtype, tokens=1, k=1), "silu_gated", dtype)
        for ids in (torch.full((9, 2), 3), torch.tensor([[0, 7]] * 9), torch.arange(72).view(9, 8) % 8):
            operands = _operands(dtype=dtype, tokens=9, k=ids.shape[1] if ids.shape[1] < 8 else 2, experts=8)
            if ids.shape[1] == 8:
                operands[2] = operands[3] = None
            operands[1] = ids
            _compare(operands, "silu_gated", dtype)


def many_pairs() -> None:
    for dtype in (torch.float, torch.bfloat16):
        _compare(_operands(dtype=dtype, tokens=5000, k=6, experts=64), "silu_gated", dtype)


def dispatch_is_exact() -> None:
    """The sort with blocks of one warp to all, of one turn and several, and with several blocks."""
    for tokens, k, experts in (
        (1, 1, 3), (4, 8, 32), (3, 2, 33), (16, 8, 128), (60, 8, 64), (130, 8, 256), (250, 8, 40), (300, 4, 1000), (3000, 8, 128),
    ):  # fmt: skip
        x, ids = _operands(tokens=tokens, k=k, experts=experts)[:2]
        table = moe.placement(experts, 1)[torch.randperm(experts)]
        call = lambda device: torch.ops.autoep.dispatch(  # noqa: E731
            x.detach().to(device), ids.to(device), None, table.to(device), 1, "", moe.LAYER, moe.ABI
        )
        for one, other in zip(call("cuda"), call("cpu"), strict=True):
            assert one.is_cuda and torch.equal(one.cpu(), other), (tokens, k, experts)


def the_same_bits_every_time() -> None:
    operands = _operands(dtype=torch.bfloat16, tokens=700, k=6, experts=16)
    operands[6] = operands[7] = None
    cuda = _on("cuda", operands)
    first = _forward_backward(cuda, "silu_gated")
    for _ in range(10):
        for one, other in zip(_forward_backward(cuda, "silu_gated"), first, strict=True):
            assert torch.equal(one, other)


def no_host_sync_in_bf16() -> None:
    """Holds in the forward and the backward pass; a captured graph replays with other routes."""
    operands = _on("cuda", _operands(dtype=torch.bfloat16, tokens=64))
    table = moe.placement(4, 1).cuda()
    with torch.no_grad():
        moe.run(*operands, "silu_gated", table=table)
    with _no_host_sync():
        out = moe.run(*operands, "silu_gated", table=table)
        torch.autograd.grad(out, [operands[0], operands[2], operands[4], operands[5]], torch.ones_like(out))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = moe.run(*operands, "silu_gated", table=table)
    operands[1].copy_(torch.flip(operands[1], [0]).roll(5, 0))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, moe.run(*operands, "silu_gated", table=table).detach())


def _moe(operands, name="silu_gated", table=None):
    x, ids, weights, scale, *experts = operands
    if table is None:
        table = moe.placement(experts[0].shape[0], 1).to(x.device)
    args = moe.activation_args(name)
    return torch.ops.autoep.moe(x, ids, weights, scale, table, *experts, name, args, x.dtype, moe.LAYER, moe.ABI)


def moe_forward_and_backward() -> None:
    """In every dtype and activation, with and without weights, scale and biases."""
    for name in moe.NAMES:
        for dtype in TOLERANCE:
            for missing in ([3], [2, 3, 6, 7], []):
                operands = _operands(name, dtype, tokens=45)
                for i in missing:
                    operands[i] = None
                results = []
                for device in ("cuda", "cpu"):
                    here = _on(device, operands)
                    leaves = [t for t in here if t is not None and t.requires_grad]
                    out = _moe(here, name)
                    pattern = torch.arange(out.numel(), dtype=torch.double).mul(0.7).cos().view(out.shape).to(out)
                    results.append([out, *torch.autograd.grad((out * pattern).sum(), leaves)])
                for i, (one, other) in enumerate(zip(*results, strict=True)):
                    _close(one, other, dtype, name, i)


def groups_of_a_few_more_rows_than_a_tile() -> None:
    """Which a wide tile takes whole, or two or three of them, forward and backward; and all sizes beside them. The gradients of the
    weights are several tiles each way."""
    few = [0, 1, 17, 240, 255, 256, 257, 258, 271, 272, 273, 274, 287, 288, 289, 300, 512, 530, 576, 577, 800, 864, 865]
    counts = torch.tensor(few + [256, 260, 264, 272] * 8)
    ids = torch.repeat_interleave(torch.arange(len(counts)), counts).unsqueeze(1)
    ids = ids[torch.randperm(len(ids))]
    for name in ("silu_gated", "gelu"):
        operands = _operands(name, torch.bfloat16, hidden=200, inner=1432, tokens=len(ids), k=1, experts=len(counts), ids=ids)
        operands[3] = None
        results = []
        for device in ("cuda", "cpu"):
            here = _on(device, operands)
            leaves = [t for t in here if t is not None and t.requires_grad]
            out = _moe(here, name)
            results.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
        for i, (one, other) in enumerate(zip(*results, strict=True)):
            _close(one, other, torch.bfloat16, name, i)


def moe_without_host_sync() -> None:
    """Forward and backward do not wait for the host, give the same bits every time, and are captured into a graph."""
    operands = _on("cuda", _operands(dtype=torch.bfloat16, tokens=300))
    operands[3] = None
    table = moe.placement(4, 1).cuda()
    leaves = [t for t in operands if t is not None and t.requires_grad]
    run = lambda: torch.autograd.grad(_moe(operands, table=table).float().square().sum(), leaves)  # noqa: E731
    first = run()
    with _no_host_sync():
        again = run()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = _moe(operands, table=table)
    operands[1].copy_(torch.flip(operands[1], [0]).roll(5, 0))
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert torch.equal(captured, _moe(operands, table=table))


def layers_in_a_row() -> None:
    """Kernels that begin before those ahead of them have ended see all that they are to see, and write over nothing that is still
    read: layer after layer in memory that is given out again, against a wait after each op."""
    hidden, experts, k = 256, 64, 8
    for tokens, inner in ((16, 128), (300, 128), (200, 1096)):
        layers = [_on("cuda", _operands("silu_gated", torch.bfloat16, hidden, inner, experts=experts, k=k)) for _ in range(4)]
        routers = [torch.randn(experts, hidden, device="cuda", dtype=torch.bfloat16) / 8 for _ in layers]
        table = moe.placement(experts, 1).cuda()
        options = (torch.float, "softmax", 1, 1, "max", 0.0, k, True, False, None, "sum", 0.0, 1.0, None)

        def run(x, wait=lambda: None, layers=layers, routers=routers, table=table, options=options):
            for _ in range(5):
                for (_, _, _, _, *weights), router in zip(layers, routers, strict=True):
                    logits = torch.nn.functional.linear(x, router)
                    wait()
                    factors, ids = torch.ops.autoep.route(logits, None, *options, moe.LAYER, moe.ABI)
                    wait()
                    added = _moe([x, ids, factors, None, *weights], table=table)
                    wait()
                    x = torch.nn.functional.layer_norm(x + added, [hidden])
                    wait()
            return x

        with torch.no_grad():
            x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
            expected = run(x, torch.cuda.synchronize)
            for _ in range(10):
                assert torch.equal(run(x), expected), tokens
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = run(x)
            for _ in range(10):
                graph.replay()
                assert torch.equal(captured, expected), tokens


def moe_keeps_what_others_read() -> None:
    """What is saved may be written over only by the last backward pass, and not where a hook has seen it."""
    operands = _on("cuda", _operands(dtype=torch.bfloat16, tokens=300))
    operands[3] = None
    leaves = [t for t in operands if t is not None and t.requires_grad]
    loss = _moe(operands).float().square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    kept = []

    def keep(tensor):
        kept.append((tensor, tensor.detach().clone()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = _moe(operands)
    hooked = torch.autograd.grad(out.float().square().sum(), leaves)
    assert all(torch.equal(one, other) for one, other in zip(first, hooked, strict=True))
    assert kept and all(torch.equal(tensor, before) for tensor, before in kept)


def beyond_2_31_elements() -> None:
    """More rows times columns than 32 bits count: the first, middle and last tokens come out as they do alone, and so do their
    gradients."""
    tokens, hidden, k = 140_000, 2048, 8
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        print("not run: it needs a GPU of 70 GiB")
        return
    assert tokens * k * hidden > 2**31
    operands = _on("cuda", _operands(dtype=torch.bfloat16, tokens=8, k=k, experts=12, hidden=hidden, inner=64))
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    ids = torch.rand(tokens, 12, device="cuda").topk(k).indices
    weights = torch.rand(tokens, k, device="cuda")
    some = torch.cat([torch.arange(begin, begin + 300, device="cuda") for begin in (0, tokens // 2, tokens - 300)])
    for run in (_moe, lambda given: moe.run(*given, "silu_gated").to(torch.bfloat16)):
        results = []
        for chosen in (slice(None), some):
            mine = [x[chosen].clone().requires_grad_(), ids[chosen], weights[chosen].clone().requires_grad_(), None, *operands[4:]]
            out = run(mine)
            results.append([out.detach(), *torch.autograd.grad(out.sum(), [mine[0], mine[2]])])
            del out
        for i, (one, other) in enumerate(zip(*results, strict=True)):
            _close(one[some], other.cpu(), torch.bfloat16, "beyond 2^31", i)


def route_is_torchs() -> None:
    """The chosen weights, the ids and the logits' gradients are those of torch's own ops, where no two scores are equal."""
    for experts, k, dtype, bias, options in (
        (128, 8, torch.bfloat16, None, (torch.float, "softmax", 1, 1, "max", 0.0, 8, True, False, None, "sum", 0.0, 1.0, None)),
        (37, 3, torch.float, None, (torch.float, "softmax", 1, 1, "max", 0.0, 3, True, False, None, "none", 0.0, 1.0, None)),
        (256, 8, torch.float, 1, (None, "sigmoid", 8, 4, "top2_sum", 0.0, 8, True, False, None, "sum", 1e-20, 2.5, None)),
        (64, 6, torch.float, None, (None, "softmax", 8, 3, "max", 0.0, 6, True, False, None, "none", 0.0, 16.0, None)),
        (32, 4, torch.bfloat16, None, (None, "none", 1, 1, "max", 0.0, 4, True, True, None, "softmax", 0.0, 1.0, None)),
        (60, 4, torch.float, 1, (None, "sigmoid", 1, 1, "max", 0.0, 4, True, True, None, "clamp", 3.5, 1.5, None)),
        (1024, 32, torch.half, None, (torch.float, "softmax", 1, 1, "max", 0.0, 32, True, False, None, "clamp", 1e-9, 1.0, torch.half)),
    ):
        # No two of a token's are equal in 16 bits.
        logits = torch.rand(501, experts, device="cuda").argsort(-1).mul(4 / experts).to(dtype).requires_grad_()
        added = None if bias is None else torch.randn(experts, device="cuda") * 0.1
        call = lambda given, *options: torch.ops.autoep.route(given, added, *options, moe.LAYER, moe.ABI)  # noqa: E731
        with torch.no_grad():
            weights, ids = call(logits, *options)
        again, again_ids = call(logits, *options)
        assert torch.equal(weights, again) and torch.equal(ids, again_ids)
        # No kernel takes fp64, so that this is torch's ops.
        wide = logits.detach().double().requires_grad_()
        torch_weights, torch_ids = call(wide, options[0] or dtype, *options[1:])
        assert weights.dtype == torch_weights.dtype and ids.shape == torch_ids.shape == (501, k)
        torch.testing.assert_close(weights, torch_weights.detach())
        assert torch.equal(ids, torch_ids)
        pattern = torch.randn(501, k, device="cuda").to(weights.dtype)
        (grad,) = torch.autograd.grad(again, logits, pattern, create_graph=True)  # torch's ops as well, to be differentiated
        assert grad.requires_grad
        (grad,) = torch.autograd.grad(call(logits, *options)[0], logits, pattern)
        (torch_grad,) = torch.autograd.grad(torch_weights, wide, pattern)
        _close(grad, torch_grad.to(dtype).cpu(), dtype, f"route {options}", 1)


def route_linear_is_the_product_and_then_route() -> None:
    """Few tokens are one launch: its choices are those of exact logits but for near ties, its bits the same every time, and
    nothing waits for the host."""
    softmax = (torch.float, "softmax", 1, 1, "max", 0.0)
    groups = (torch.float, "sigmoid", 8, 4, "top2_sum", 0.0)
    end = (True, False, None, "sum", 0.0, 1.0, None, moe.LAYER, moe.ABI)
    for dtype in (torch.bfloat16, torch.half):
        for tokens, hidden, experts, k, scores in (
            (0, 64, 8, 2, softmax),
            (1, 2048, 128, 8, softmax),
            (17, 4096, 8, 2, softmax),
            (63, 1992, 37, 3, softmax),
            (5, 72, 3, 2, softmax),
            (130, 2880, 64, 4, softmax),
            (300, 1024, 32, 4, softmax),
            (77, 2048, 384, 6, softmax),
            (200, 7168, 256, 8, groups),
            (1025, 512, 128, 8, softmax),  # by torch's product
        ):
            x = torch.randn(tokens, hidden, device="cuda", dtype=dtype)
            gate = torch.randn(experts, hidden, device="cuda", dtype=dtype) * hidden**-0.5
            gate_bias = torch.randn(experts, device="cuda", dtype=dtype) if experts % 2 == 0 else None
            bias = torch.randn(experts, device="cuda") * 0.1 if scores is groups else None
            exact = torch.nn.functional.linear(x.double(), gate.double(), None if gate_bias is None else gate_bias.double())
            for logits_dtype in (None, torch.float):
                call = lambda: torch.ops.autoep.route.linear(  # noqa: E731
                    x, gate, gate_bias, bias, logits_dtype, *scores, k, *end  # noqa: B023
                )
                call()
                with _no_host_sync():
                    weights, ids = call()
                again = call()
                assert torch.equal(weights, again[0]) and torch.equal(ids, again[1])
                logits = exact.to(dtype if logits_dtype is None else torch.float)
                expected, expected_ids = torch.ops.autoep.route(logits, bias, *scores, k, *end)
                same = (ids == expected_ids).all(-1)
                assert weights.dtype == expected.dtype and ids.shape == expected_ids.shape == (tokens, k)
                assert (~same).double().sum() <= (0.15 if logits_dtype is None else 0.005) * tokens, (tokens, hidden, experts)
                close = {"rtol": 0.03, "atol": 1e-3} if logits_dtype is None else {"rtol": 1e-3, "atol": 1e-5}
                torch.testing.assert_close(weights[same], expected[same], **close)
    x, gate = (torch.randn(size, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for size in (9, 8))
    torch.ops.autoep.route.linear(x, gate, None, None, None, *softmax, 2, *end)[0].square().sum().backward()
    assert x.grad.norm() > 0 and gate.grad.norm() > 0


def gradients_of_wide_logits_are_rounded_once() -> None:
    """What is made of bf16 with sums of fp32 has gradients as exact as those of copies of fp32, however unlike the tokens' are."""
    scores = (torch.float, "none", 1, 1, "max", 0.0)
    end = (True, True, None, "none", 0.0, 1.0, None, moe.LAYER, moe.ABI)
    for tokens, hidden, experts, k in ((1025, 512, 128, 8), (3000, 1001, 40, 6), (9, 64, 8, 2), (0, 64, 8, 2)):
        x, gate, gate_bias = (
            torch.randn(*size, device="cuda").bfloat16().requires_grad_() for size in ((tokens, hidden), (experts, hidden), (experts,))
        )
        leaves = (x, gate, gate_bias)
        weights, ids = torch.ops.autoep.route.linear(*leaves, None, torch.float, *scores, k, *end)
        pattern = torch.randn_like(weights) * torch.exp(4 * torch.randn(tokens, 1, device="cuda"))
        again = torch.autograd.grad(weights, leaves, pattern, create_graph=True)  # torch's ops, to be differentiated
        assert all(grad.requires_grad for grad in again[:2])
        logits_grad = torch.zeros(tokens, experts, device="cuda").scatter(1, ids, pattern).double()
        operands = (gate.detach(), x.detach(), torch.ones(tokens, device="cuda"))
        found = torch.autograd.grad(weights, leaves, pattern)
        for left, right, *grads in zip((logits_grad, logits_grad.T, logits_grad.T), operands, found, again, strict=True):
            exact, size = left @ right.double(), left.abs() @ right.double().abs()
            for grad in grads:
                assert ((grad.double() - exact).abs() <= exact.abs() * 2**-8 + size * 2**-20).all(), (tokens, hidden, experts)


def opcheck() -> None:
    x, ids, weights, _, gate_up, down, _, _ = _on("cuda", _operands())
    table = moe.placement(4, 1).cuda()
    end = ("", moe.LAYER, moe.ABI)
    torch.library.opcheck(torch.ops.autoep.dispatch.default, (x, ids, None, table, 1, *end))
    outs = torch.ops.autoep.dispatch(x, ids, None, table, 1, *end)
    rows, offsets, counts, order, received = (out.detach().clone() for out in outs)
    rows.requires_grad_()
    shape = ("silu_gated", [], moe.LAYER, moe.ABI)
    torch.library.opcheck(torch.ops.autoep.experts.default, (rows, offsets, gate_up, down, None, None, *shape))
    torch.library.opcheck(torch.ops.autoep.combine.default, (rows, weights, order, counts, received, table, 1, *end))


CHECKS = [
    dispatch_is_exact,
    activations,
    sizes_without_alignment,
    optional_operands,
    fp32_weights,
    edge_routing,
    many_pairs,
    the_same_bits_every_time,
    no_host_sync_in_bf16,
    moe_forward_and_backward,
    groups_of_a_few_more_rows_than_a_tile,
    moe_without_host_sync,
    layers_in_a_row,
    route_is_torchs,
    route_linear_is_the_product_and_then_route,
    gradients_of_wide_logits_are_rounded_once,
    moe_keeps_what_others_read,
    beyond_2_31_elements,
    opcheck,
]


def main() -> int:
    torch.ops.load_library(sys.argv[1] if len(sys.argv) > 1 else os.environ["AUTOEP_LIBRARY"])
    _register_fakes()
    failed = 0
    for check in CHECKS:
        try:
            check()
            torch.cuda.synchronize()
            print(f"PASS {check.__name__}", flush=True)
        except Exception:  # every check reports
            failed += 1
            print(f"FAIL {check.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{len(CHECKS) - failed} passed, {failed} failed on {torch.cuda.get_device_name()}")
    return 1 if failed else 0


def _register_fakes() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin" / "python"))
    from autoep import _fakes

    _fakes.register()


if __name__ == "__main__":
    sys.exit(main())

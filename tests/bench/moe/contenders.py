# SPDX-License-Identifier: Apache-2.0
"""Who runs. Each takes the layer's tensors once and gives a call from hidden states [T, H] to the block's output [T, H]. A peer
that cannot be imported or cannot do a layer raises, and the table says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.moe.block import Block
from bench.moe.shapes import ACTIVATION_ARGS, Shape


@dataclass
class Layer:
    """One block's weights, biases None where the shape has none."""

    shape: Shape
    router: torch.Tensor  # [E, H]
    gate_up: torch.Tensor  # [E, 2I, H], gate rows first
    down: torch.Tensor  # [E, H, I]
    gate_up_bias: torch.Tensor | None  # [E, 2I]
    down_bias: torch.Tensor | None  # [E, H]
    placement: torch.Tensor  # [E, 1, 2]

    @staticmethod
    def random(shape: Shape, skew: float = 0.0, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Layer:
        """skew > 0 makes low experts likelier, as Zipf's law with this exponent."""

        def normal(*sizes):
            return torch.empty(*sizes, device=device, dtype=dtype).normal_(std=0.02)

        router = normal(shape.experts, shape.hidden)
        if skew > 0:
            rank = torch.arange(1, shape.experts + 1, device=device, dtype=torch.float)
            # Tokens are standard normal with a first component of 1, see inputs().
            router[:, 0] = (-skew * rank.log()).to(dtype)
        bias = shape.biases
        slots = torch.arange(shape.experts, device=device)
        return Layer(
            shape,
            router,
            normal(shape.experts, 2 * shape.inner, shape.hidden),
            normal(shape.experts, shape.hidden, shape.inner),
            normal(shape.experts, 2 * shape.inner) if bias else None,
            normal(shape.experts, shape.hidden) if bias else None,
            torch.stack([torch.zeros_like(slots), slots], -1).view(-1, 1, 2),
        )

    def tensors(self) -> list[torch.Tensor]:
        """What has gradients."""
        return [t for t in (self.router, self.gate_up, self.down, self.gate_up_bias, self.down_bias) if t is not None]


def inputs(shape: Shape, tokens: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    x = torch.randn(tokens, shape.hidden, device=device, dtype=dtype)
    x[:, 0] = 1
    return x


def route(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax, top-k, renormalised: weights fp32, ids int64."""
    operands = (x.float(), layer.router.float()) if layer.shape.wide_router else (x, layer.router)
    probabilities = torch.softmax(F.linear(*operands), -1, dtype=torch.float32)
    weights, ids = torch.topk(probabilities, layer.shape.top_k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def ours(layer: Layer) -> Callable:
    tensors = {name: getattr(layer, name) for name in ("router", "placement", "gate_up", "down", "gate_up_bias", "down_bias")}
    return torch.jit.script(Block(tensors, layer.shape))


def ours_three_ops(layer: Layer) -> Callable:
    """As a converted model has it on several ranks, here with one."""
    block = ours(layer)
    name = layer.shape.activation
    ops = torch.ops.autoep
    end = ("bench#0", 1)

    def call(x):
        weights, ids = block.route(x)
        rows, offsets, counts, order, received = ops.dispatch(x, ids, None, layer.placement, 1, "", *end)
        weights_in = (layer.gate_up, layer.down, layer.gate_up_bias, layer.down_bias)
        done = ops.experts(rows, offsets, *weights_in, name, ACTIVATION_ARGS.get(name, []), *end)
        return ops.combine(done, weights, order, counts, received, layer.placement, 1, "", *end).to(x.dtype)

    return call


def _activate(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = hidden.chunk(2, -1)
    if layer.shape.activation == "silu_gated":
        return F.silu(gate) * up
    alpha, limit = ACTIVATION_ARGS["clamped_swiglu"]
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def lean(layer: Layer) -> Callable:
    """torch's grouped GEMM with as little around it as torch allows."""

    def call(x):
        weights, ids = route(layer, x)
        flat = ids.reshape(-1)
        order = torch.argsort(flat)
        experts = layer.shape.experts
        ends = torch.cumsum(torch.histc(flat.int() if flat.is_cuda else flat.float(), experts, 0, experts - 1), 0).to(torch.int32)
        hidden = torch._grouped_mm(x[order // layer.shape.top_k], layer.gate_up.transpose(-2, -1), ends)
        expert_of_row = flat[order] if layer.shape.biases else None
        if layer.gate_up_bias is not None:
            hidden = hidden + layer.gate_up_bias[expert_of_row]
        rows = torch._grouped_mm(_activate(layer, hidden), layer.down.transpose(-2, -1), ends)
        if layer.down_bias is not None:
            rows = rows + layer.down_bias[expert_of_row]
        out = torch.empty_like(rows)
        out[order] = rows
        return (out.view(len(x), -1, layer.shape.hidden) * weights.to(x.dtype).unsqueeze(-1)).sum(1)

    return call


def compiled(make: Callable[[Layer], Callable], mode: str) -> Callable[[Layer], Callable]:
    return lambda layer: torch.compile(make(layer), dynamic=False, mode=mode)


def transformers(layer: Layer, experts: str = "grouped_mm") -> Callable:
    """Qwen3's block; `experts` names transformers' way of computing them."""
    if layer.shape.biases or layer.shape.wide_router:
        raise NotImplementedError("Qwen3's block has no biases, and a router of its weights' type")
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=layer.shape.hidden,
        moe_intermediate_size=layer.shape.inner,
        num_experts=layer.shape.experts,
        num_experts_per_tok=layer.shape.top_k,
        norm_topk_prob=True,
    )
    config._experts_implementation = experts
    with torch.device("meta"):
        block = Qwen3MoeSparseMoeBlock(config)
    block.to_empty(device=layer.router.device).to(layer.router.dtype)
    # The layer's own tensors, so that they get the gradients.
    for module, name, tensor in (
        (block.gate, "weight", layer.router),
        (block.experts, "gate_up_proj", layer.gate_up),
        (block.experts, "down_proj", layer.down),
    ):
        delattr(module, name)
        setattr(module, name, tensor)

    def call(x):
        out = block(x.unsqueeze(0))
        return (out[0] if isinstance(out, tuple) else out).view_as(x)

    return call


def _search_few_tiles() -> None:
    """Leaves SonicMoE's search the tiles that its paper names for Hopper: all of them take minutes a cell."""
    from quack import gemm_interface

    kept = {(128, 256, False), (128, 192, True)}  # rows, columns, two consumers in turn
    for name in ("gemm_tuned", "gemm_act_tuned", "gemm_gated_tuned", "gemm_dgated_tuned"):
        tuned = getattr(gemm_interface, name, None)
        if tuned is None:
            continue
        configs = [(entry, entry.kwargs["config"]) for entry in tuned.configs]
        tuned.configs = [
            entry
            for entry, config in configs
            if config.device_capacity == 9 and config.cluster_n == 1 and not config.swap_ab
            and (config.tile_m, config.tile_n, config.pingpong) in kept
        ]  # fmt: skip


def sonicmoe(layer: Layer) -> Callable:
    if layer.shape.biases or layer.shape.wide_router or layer.shape.activation != "silu_gated":
        raise NotImplementedError("run here without biases, with SwiGLU and a router of the weights' type")
    from sonicmoe import moe_TC_softmax_topk_layer

    _search_few_tiles()
    inner = layer.shape.inner
    gate_up = torch.stack((layer.gate_up[:, :inner], layer.gate_up[:, inner:]), 2).reshape(layer.gate_up.shape).contiguous()

    def call(x):
        stream = torch.cuda.current_stream().cuda_stream
        up, down = gate_up.permute(1, 2, 0), layer.down.permute(1, 2, 0)
        infer = not torch.is_grad_enabled()
        return moe_TC_softmax_topk_layer(x, layer.router, up, None, down, None, layer.shape.top_k, stream, "swiglu", infer)[0]

    call.leaves = [gate_up]
    return call


def liger(layer: Layer) -> Callable:
    if layer.shape.biases or layer.shape.activation != "silu_gated":
        raise NotImplementedError("it has no biases, and SwiGLU alone")
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    def call(x):
        weights, ids = route(layer, x)
        return LigerFusedMoEFunction.apply(x, layer.gate_up, layer.down, ids.int(), weights.to(x.dtype))

    return call


CONTENDERS: dict[str, Callable[[Layer], Callable]] = {
    "ours": ours,
    "ours-three-ops": ours_three_ops,
    "lean": lean,
    "lean-compiled": compiled(lean, "default"),
    "lean-autotuned": compiled(lean, "max-autotune-no-cudagraphs"),
    "transformers": transformers,
    "transformers-compiled": compiled(transformers, "default"),
    "transformers-autotuned": compiled(transformers, "max-autotune-no-cudagraphs"),
    "sonicmoe": sonicmoe,
    "liger": liger,
}

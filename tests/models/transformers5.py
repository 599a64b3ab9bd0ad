# SPDX-License-Identifier: Apache-2.0
# Mixtral and Qwen3-MoE of transformers 5, as whole language models or as one MoE block, with the experts implementation
# that the name says ("grouped_mm" is transformers' default).
import torch
from torch import nn

from models.spec import Built, Inputs, randomize, use_transformers

HIDDEN, VOCABULARY, EXPERTS = 64, 128, 8

# No size equals another, so that a mix-up of two does not go unseen.
_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def _mixtral(**changes):
    use_transformers(5)
    from transformers import MixtralConfig, MixtralForCausalLM

    fields = dict(intermediate_size=96, num_local_experts=EXPERTS, num_experts_per_tok=2)
    return MixtralForCausalLM, MixtralConfig(**(_COMMON | fields | changes))


def _qwen3_moe(**changes):
    use_transformers(5)
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    fields = dict(
        head_dim=16,
        intermediate_size=112,
        moe_intermediate_size=48,
        num_experts=EXPERTS,
        num_experts_per_tok=3,
        norm_topk_prob=True,
    )
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**(_COMMON | fields | changes))


_FAMILIES = {"mixtral": _mixtral, "qwen3moe": _qwen3_moe}


class Logits(nn.Module):
    """A traceable language model: ids in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


class BlockWithLogits(nn.Module):
    """A MoE block that also returns its router's logits, as blocks trained with an auxiliary loss do."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.gate = block.gate
        self.experts = block.experts

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        router_logits, weights, ids = self.gate(rows)
        return self.experts(rows, ids, weights).reshape(hidden_states.shape), router_logits


def token_ids(batch: int, length: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, VOCABULARY, (batch, length), generator=generator)}


def hidden_states(dtype: torch.dtype, width: int = HIDDEN):
    def make(batch: int, length: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {"hidden_states": torch.randn(batch, length, width, generator=generator).to(dtype)}

    return make


def causal_lm(family: str, experts: str, dtype: torch.dtype, **changes) -> nn.Module:
    model_class, config = _FAMILIES[family](**changes)
    config._attn_implementation = "eager"
    model = model_class._from_config(config, dtype=dtype, experts_implementation=experts)
    return randomize(model).eval()


def lm(family: str, experts: str, dtype: torch.dtype, **changes) -> Built:
    return Built(Logits(causal_lm(family, experts, dtype, **changes)).eval(), token_ids)


def guarded_lm(family: str, experts: str, dtype: torch.dtype) -> Built:
    """With guards against ids past the last expert: a flag here, always there in transformers 5.4 to 5.19."""
    model = causal_lm(family, experts, dtype)
    for layer in model.model.layers:
        assert layer.mlp.experts._is_expert_parallel is False
        layer.mlp.experts._is_expert_parallel = True
    return Built(Logits(model).eval(), token_ids)


def block(family: str, experts: str, dtype: torch.dtype, with_logits: bool = False, **changes) -> Built:
    moe = causal_lm(family, experts, dtype, **changes).model.layers[1].mlp
    return Built(BlockWithLogits(moe).eval() if with_logits else moe, hidden_states(dtype))

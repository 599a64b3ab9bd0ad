# SPDX-License-Identifier: Apache-2.0
# Mixtral of transformers 4 (one Linear triple an expert), its MoE block replaced by a loop of models.loops: alone, or inside
# the language model.
import torch
from torch import nn

from models import loops
from models.spec import Built, Inputs, randomize, use_transformers
from models.transformers5 import EXPERTS, HIDDEN, VOCABULARY, hidden_states, token_ids

INTERMEDIATE = 96


class Logits(nn.Module):
    """transformers 4 traces only with an explicit 4-D mask and positions."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits


def _lm_inputs(dtype: torch.dtype):
    def make(batch: int, length: int, seed: int) -> Inputs:
        mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)
        positions = torch.arange(length).expand(batch, length).contiguous()
        return token_ids(batch, length, seed) | {
            "attention_mask": mask.expand(batch, 1, length, length).contiguous(),
            "position_ids": positions,
        }

    return make


def causal_lm(dtype: torch.dtype, **changes) -> nn.Module:
    use_transformers(4)
    from transformers import MixtralConfig, MixtralForCausalLM

    fields = dict(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    config = MixtralConfig(**(fields | changes))
    config._attn_implementation = "eager"
    return randomize(MixtralForCausalLM._from_config(config, dtype=dtype)).eval()


def block(style: str, dtype: torch.dtype, script: bool, with_logits: bool = False, **changes) -> Built:
    moe = loops.make(style, causal_lm(dtype, **changes).model.layers[1].block_sparse_moe, with_logits)
    return Built(moe, hidden_states(dtype), script=script)


def lm(style: str, dtype: torch.dtype, script: bool, **changes) -> Built:
    """The whole model, traced; with `script`, the MoE blocks inside are scripted and keep their control flow."""
    model = causal_lm(dtype, **changes)
    for layer in model.model.layers:
        moe = loops.make(style, layer.block_sparse_moe, with_logits=True)
        layer.block_sparse_moe = torch.jit.script(moe) if script else moe
    return Built(Logits(model).eval(), _lm_inputs(dtype))

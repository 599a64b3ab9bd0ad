# SPDX-License-Identifier: Apache-2.0
# Marker models: expert i answers every token with the same row: i in the first half of the channels, and 1 in channel
# i of the second half. So a block's output shows which experts a token met and with which weights, whatever the layout.
import torch

from models import transformers4, transformers5
from models.spec import Built, Inputs

_HALF = transformers5.HIDDEN // 2


def _rows(expert: int, hidden: int, intermediate: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate, up [I, H] and down [H, I] of a marker expert, for tokens whose channel 0 is 1.

    silu(32) is exactly 32 and 32 / 32 exactly 1 in every float type, so the answer is exact.
    """
    gate, up, down = torch.zeros(intermediate, hidden), torch.zeros(intermediate, hidden), torch.zeros(hidden, intermediate)
    gate[0, 0], up[0, 0] = 32.0, 1.0 / 32.0
    down[:_HALF, 0] = expert
    down[_HALF + expert, 0] = 1.0
    return gate, up, down


def _inputs(dtype: torch.dtype):
    plain = transformers5.hidden_states(dtype)

    def make(batch: int, length: int, seed: int) -> Inputs:
        x = plain(batch, length, seed)["hidden_states"]
        x[..., 0] = 1.0
        return {"hidden_states": x}

    return make


def block5(family: str, experts: str, dtype: torch.dtype = torch.float32, **changes) -> Built:
    built = transformers5.block(family, experts, dtype, **changes)
    gate_up, down = built.module.experts.gate_up_proj, built.module.experts.down_proj
    for i in range(gate_up.shape[0]):
        gate, up, out = _rows(i, down.shape[1], down.shape[2])
        gate_up.data[i] = torch.cat([gate, up]).to(dtype)
        down.data[i] = out.to(dtype)
    return Built(built.module, _inputs(dtype))


def block4(style: str, script: bool, dtype: torch.dtype = torch.float32, **changes) -> Built:
    built = transformers4.block(style, dtype, script, **changes)
    for i in range(built.module.num_experts):
        gate, up, down = _rows(i, transformers5.HIDDEN, transformers4.INTERMEDIATE)
        built.module.set_expert(i, gate.to(dtype), down.to(dtype), up.to(dtype))
    return Built(built.module, _inputs(dtype), script=script)

# SPDX-License-Identifier: Apache-2.0
# Which models of tests/models the end-to-end tests convert, and for how many ranks.
from dataclasses import dataclass

import pytest

from models import families

# Every graph form, alone and inside a language model; ep 1, 2 and 4.
WIDE = [
    "mixtral5_grouped_lm_fp32",
    "mixtral5_batched_lm_fp32",
    "mixtral5_grouped_lm_bf16",
    "mixtral5_grouped_lm_fp32_frozen",
    "qwen3moe5_grouped_lm_fp32",
    "qwen3moe5_batched_block_fp32",
    "mixtral4_dense_mask_trace_lm_fp32",
    "mixtral4_sparse_if_script_lm_fp32",
]

# The rest of the forms; ep 2.
NARROW = [
    "mixtral5_batched_lm_bf16",
    "mixtral5_batched_lm_fp32_frozen",
    "mixtral5_grouped_guarded_lm",
    "qwen3moe5_batched_guarded_lm",
    "mixtral5_grouped_block_logits",
    "qwen3moe5_batched_block_logits",
    "qwen3moe5_grouped_block_bf16",
    "qwen3moe5_batched_lm_fp32_frozen",
    "mixtral4_dense_mask_script_block_logits",
    "mixtral4_dense_scatter_trace_lm_fp32",
    "mixtral4_dense_scatter_script_block_fp32",
    "mixtral4_dense_onehot_trace_block_fp32",
    "mixtral4_dense_onehot_script_lm_fp32",
    "mixtral4_sparse_where_trace_block_fp32",
    "mixtral4_sparse_where_script_lm_bf16",
    "mixtral4_sparse_onehot_trace_lm_fp32",
    "mixtral4_sparse_onehot_script_block_fp32",
    "mixtral4_sparse_nonzero_script_block_fp32",
    "mixtral4_sparse_nonzero_script_lm_fp32",
    "mixtral4_dense_renorm_trace_block_fp32",
    "mixtral4_dense_renorm_script_lm_fp32",
    "mixtral4_dense_stacked_trace_block_fp32",
    "mixtral4_dense_einsum_script_block_fp32",
    "mixtral4_dense_bmm_trace_lm_fp32",
]

MARKERS = [
    "mixtral5_grouped_marker",
    "qwen3moe5_batched_marker",
    "mixtral4_dense_scatter_trace_marker",
    "mixtral4_sparse_if_script_marker",
]

# Rebuilt: of the experts that answer the token itself the trace's example hit one, and none. All ranks share the others.
IDENTITY = ["longcat_flash-v4-eager-1x4-block", "longcat_flash-v5-eager-1x4-block"]

# Scripts that cut one matrix into a list of parts (4), and that index a stack by a tensor (5).
SCRIPTED = ["dbrx-v4-script-block", "dbrx-v5-script-block"]

GRADIENTS = ["mixtral5_grouped_lm_fp32", "qwen3moe5_batched_block_fp32", "mixtral4_sparse_if_script_lm_fp32"]

SHAPES = ["2x12", "3x7", "1x1", "2x33"]


@dataclass(frozen=True)
class Case:
    model: str
    ep_size: int
    layout: str = "shared"

    def __str__(self) -> str:
        return f"{self.model}-ep{self.ep_size}" + ("" if self.layout == "shared" else f"-{self.layout}")


ANSWER_CASES = (
    [Case(model, ep_size) for model in WIDE for ep_size in (1, 2, 4)]
    + [Case(model, 2) for model in NARROW]
    + [Case(model, ep_size) for model in MARKERS + IDENTITY + SCRIPTED for ep_size in (1, 2, 4)]
    + [Case("mixtral5_grouped_lm_fp32", 2, "per-rank"), Case("mixtral4_sparse_if_script_lm_fp32", 2, "per-rank")]
    + [Case("mixtral5_grouped_lm_fp32_frozen", 2, "per-rank")]
)

GRADIENT_CASES = [Case(model, ep_size) for model in GRADIENTS for ep_size in (1, 2)]

# The families: whatever has a preset. One form of transformers 5 for 1, 2 and 4 ranks, another for 2; the rest is `full`.
FAMILY_CASES = [
    Case(f"{name}-{form}", ep_size)
    for name in families.families()
    for form, sizes in zip(families.chief_forms(name), [(1, 2, 4), (2,)])
    for ep_size in sizes
]
_CHIEF = {case.model for case in FAMILY_CASES}
FULL_FAMILY_CASES = [
    Case(f"{name}-{form}", 2) for name in families.families() for form in families.forms_of(name) if f"{name}-{form}" not in _CHIEF
]
FAMILY_PARAMS = FAMILY_CASES + [pytest.param(case, marks=pytest.mark.full) for case in FULL_FAMILY_CASES]

# Files that are refused, though right, at least for the shapes tested here, or converted in part if they were not: a part of the
# reason.
REFUSED_FAMILIES = {
    "nllb_moe-v5-eager-4x64-block": "the capacity of its router, 256 tokens an expert, may be that of the trace's example",
    "nllb_moe-v5-eager-4x64-lm": "baked",
    "dots1-v4-eager-2x12-lm-frozen": "nothing of the model is converted",
}

# SPDX-License-Identifier: Apache-2.0
# Real files of each graph form with one thing changed, so that the block no longer is the weighted sum of its experts, or one
# that nobody can read. Each must be refused, with its reason.
import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from models import archives


@dataclass(frozen=True)
class NearMiss:
    model: str
    name: str
    change: Callable[[archives.Archive], None]
    reason: str  # a regular expression

    def __str__(self) -> str:
        return f"{self.model}-{self.name}"

    def make(self, source: Path, target: Path) -> Path:
        archive = archives.read(source)
        self.change(archive)
        return archives.write(archive, target)


def code(pattern: str, replacement: str, count: int = 0) -> Callable[[archives.Archive], None]:
    """Rewrites the code; `count` limits the places in a file."""

    def change(archive: archives.Archive) -> None:
        places = 0
        for module, tree in archive.code.items():
            text, found = re.subn(pattern, replacement, ast.unparse(tree), count)
            archive.code[module], places = ast.parse(text), places + found
        assert places > 0, f"nothing is written as {pattern}"

    return change


def share(one: str, other: str) -> Callable[[archives.Archive], None]:
    """Two parameters become one: paths as in "experts.3.up_proj.weight"."""

    def owner(archive: archives.Archive, path: str) -> dict:
        state = archive.root.state
        for name in path.split(".")[:-1]:
            state = state[name].state
        return state

    def change(archive: archives.Archive) -> None:
        name, other_name = one.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1]
        owner(archive, one)[name] = owner(archive, other)[other_name]

    return change


def drop_expert(number: int, pattern: str, replacement: str) -> Callable[[archives.Archive], None]:
    """The expert's module goes, and what its sum adds; its dead call is of the expert before."""

    def change(archive: archives.Archive) -> None:
        code(pattern, replacement)(archive)
        code(rf"(getattr\(experts\d*, '|experts\d*\.expert_){number}\b", rf"\g<1>{number - 1}")(archive)
        code(rf"\n +(__annotations__\['{number}'\] =|expert_{number}:)[^\n]+", "")(archive)
        experts = archive.root.state["experts"].state
        del experts[next(name for name in experts if name.removeprefix("expert_") == str(number))]

    return change


def _of(model: str, **changes) -> list[NearMiss]:
    return [NearMiss(model, name, change, reason) for name, (change, reason) in changes.items()]


_UNKNOWN = "must reach experts of a known form"
_SAME = "all experts must have the same shape, activation and biases"
_ONE_VALUE = "the choices' weights must be one value"
_OWN = "each expert of the router must be answered by a feed-forward of its own"
_DIFFERS = "the sum is not that of the chosen experts"
_GUARD = "a guard among the experts must be of the chosen ids"
_TOP_K = "the number of experts a token has must not depend on the input"
_TWICE = "each tensor must belong to one expert in one role"
_ACTIVATION = code(r"torch\.silu\(", "torch.mish(")

GROUPED = _of(
    "mixtral-v5-grouped-block",
    activation=(_ACTIVATION, _UNKNOWN),
    extra_op=(code(r"torch\.mul\(act_fn\.forward\(input0\), up\)", "torch.mul(torch.mul(act_fn.forward(input0), up), 2)"), _UNKNOWN),
    not_gated=(code(r"torch\.mul\(act_fn\.forward\(input0\), up\)", "act_fn.forward(torch.mul(input0, up))"), _UNKNOWN),
    top_k_of_the_input=(code(r"torch\.topk\(router_probs, 2\)", "torch.topk(router_probs, torch.size(hidden_states, 0))"), _TOP_K),
    missing_expert=(code(r"torch\.histc\(histc_input, 8, 0, 7\)", "torch.histc(histc_input, 7, 0, 6)"), "the last group does not end with the rows"),
    weights_unsorted=(code(r"torch\.index\(sample_weights, _\d+\)", "sample_weights"), _DIFFERS),
    down_of_the_next_expert=(code(r"torch\.transpose\(down_proj, -2, -1\)", "torch.roll(torch.transpose(down_proj, -2, -1), [1], [0])"), _UNKNOWN),
)
GROUPED += _of(
    "mixtral-v5-grouped-lm",
    shared_weights=(share("model.model.layers.1.mlp.experts.gate_up_proj", "model.model.layers.0.mlp.experts.gate_up_proj"), "is used by more than the experts"),
)

BATCHED = _of(
    "gpt_oss-v5-batched-block",
    activation=(code(r"torch\.sigmoid\(torch\.mul\(gate0", "torch.tanh(torch.mul(gate0"), _UNKNOWN),
    extra_op=(code(r"torch\.add_\(out, bias\)", "torch.mul(torch.add_(out, bias), 2)"), _UNKNOWN),
    two_limits=(code(r"torch\.clamp\(up, -7\.0, 7\.0\)", "torch.clamp(up, -6.0, 7.0)"), _UNKNOWN),
    top_k_of_the_input=(code(r"torch\.topk\(router_logits, 3\)", "torch.topk(router_logits, torch.size(hidden_states, 0))"), _TOP_K),
    missing_expert=(code(r"torch\.index\(gate_up_proj, _\d+\)", "torch.index(gate_up_proj, [torch.clamp(expert_ids, None, 6)])"), _UNKNOWN),
    bias_of_another_expert=(code(r"torch\.index\(down_proj_bias, _\d+\)", "torch.index(down_proj_bias, [torch.flip(expert_ids, [0])])"), _UNKNOWN),
    no_bias_after_down=(code(r"torch\.add_\(out0, bias0\)", "torch.sub(out0, bias0)"), "moves rows, compares, or combines linearly"),
)

# transformers' guards against ids past the last expert, here against the last one.
GUARDED = _of(
    "mixtral5_grouped_guarded_lm",
    guard_of_an_expert=(code(r"torch\.ge\(expert_ids_g, 8\)", "torch.ge(expert_ids_g, 7)"), _UNKNOWN),
    guard_of_another_choice=(
        code(r"torch\.masked_fill\(proj_out, sentinel_mask", "torch.masked_fill(proj_out, torch.unsqueeze(torch.ge(torch.argmax(selected_hidden_states_g, -1), 8), -1)"),
        _GUARD,
    ),
    guard_of_rows=(code(r"torch\.ge\(expert_ids_g, 8\)", "torch.ge(perm, 8)"), _UNKNOWN),
)
GUARDED += _of(
    "qwen3moe5_batched_guarded_lm",
    last_expert_cut_off=(code(r"torch\.clamp\(expert_ids, 0, 7\)", "torch.clamp(expert_ids, 0, 6)"), _DIFFERS),
    first_expert_cut_off=(code(r"torch\.clamp\(expert_ids, 0, 7\)", "torch.clamp(expert_ids, 1, 7)"), "moves rows, compares, or combines linearly"),
)

LOOP = _of(
    "olmoe-v4-eager-4x64-block",
    activation=(_ACTIVATION, _UNKNOWN),
    extra_op=(code(r"torch\.mul\((_\d+), torch\.index\(", r"torch.mul(torch.mul(\1, 2), torch.index(", 1), _SAME),
    shared_weights=(share("experts.3.up_proj.weight", "experts.2.up_proj.weight"), _TWICE),
    top_k_of_the_input=(code(r"torch\.topk\(routing_weights, 3\)", "torch.topk(routing_weights, torch.size(hidden_states, 1))"), _TOP_K),
    missing_expert=(drop_expert(4, r"torch\.index_add_\((final_hidden_states3), 0, \w+, \w+\)", r"\1"), "baked: the graph holds 7 of the router's 8 experts"),
    one_expert_twice=(code(r"torch\.select\(expert_mask, 0, 5\)", "torch.select(expert_mask, 0, 4)"), _OWN),
    weight_of_another_slot=(code(r"\[top_x, idx\]", "[top_x, torch.sub(2, idx)]"), _OWN),
)

FLAT_LOOP = _of(
    "dbrx-v4-eager-4x64-block",
    activation=(_ACTIVATION, _UNKNOWN),
    extra_op=(code(r"torch\.squeeze\(w20, 0\)", "torch.mul(torch.squeeze(w20, 0), 2)"), "baked: the graph holds 7 of the router's 8 experts"),
    shared_weights=(share("experts.mlp.v1", "experts.mlp.w1"), _TWICE),
    top_k_of_the_input=(code(r"torch\.topk\(weights, 3\)", "torch.topk(weights, torch.size(x, 1))"), _TOP_K),
    missing_expert=(code(r"torch\.squeeze\(w13, 0\)", "torch.squeeze(w12, 0)"), "baked: the graph holds 7 of the router's 8 experts"),
)

# Scripted: a list of the parts of a matrix, and a stack indexed by a tensor.
PARTS = _of(
    "dbrx-v4-script-block",
    activation=(_ACTIVATION, _UNKNOWN),
    extra_op=(code(r"torch\.mul\(gate_proj0, up_proj\)", "torch.mul(torch.mul(gate_proj0, up_proj), 2)"), _UNKNOWN),
    parts_scaled=(code(r"torch\.squeeze\(w10, 0\)", "torch.mul(torch.squeeze(w10, 0), 2)"), _UNKNOWN),
    parts_of_another_number=(code(r"torch\.chunk\((_\d+), moe_num_experts3\)", r"torch.chunk(\1, 4)"), _UNKNOWN),
    matrix_of_another_expert=(code(r"v1_chunked0\[expert_idx\]", "v1_chunked0[torch.sub(7, expert_idx)]"), _UNKNOWN),
    missing_expert=(code(r"__range_length\(0, moe_num_experts6, 1\)", "__range_length(0, 7, 1)"), _DIFFERS),
)
INDEXED = _of(
    "dbrx-v5-script-block",
    activation=(_ACTIVATION, _UNKNOWN),
    shared_weights=(share("experts.mlp.v1", "experts.mlp.w1"), _TWICE),
    index_of_a_dimension=(code(r"\[expert_idx0\]\)\n(\s+)(\w+) = torch\.index\(_", r"[expert_idx])\n\1\2 = torch.index(_"), "by one number"),
    weight_of_another_slot=(code(r"\[token_idx, idx\]", "[token_idx, torch.sub(2, idx)]"), _DIFFERS),
    missing_expert=(code(r"torch\.gt\(torch\.sum\(expert_mask0, \[-1, -2\]\), 0\)", "torch.gt(torch.sum(torch.slice(expert_mask0, 0, 0, 7), [-1, -2]), 0)"), _DIFFERS),
    gradient_kept_out=(code(r"torch\.index\(expert_mask0, (_\d+)\)", r"torch.mul(torch.index(expert_mask0, \1), torch.gt(torch.sum(top_k_weights), -9))"), _UNKNOWN),
)

SORTED_SLICES = _of(
    "deepseek_v2-v4-eager-4x64-block",
    activation=(_ACTIVATION, _UNKNOWN),
    extra_op=(code(r"torch\.cat\((_34)\)", r"torch.mul(torch.cat(\1), torch.cat(\1))"), _OWN),
    shared_weights=(share("experts.3.up_proj.weight", "experts.2.up_proj.weight"), _TWICE),
    top_k_of_the_input=(code(r"torch\.topk\((\w+), 3, ", r"torch.topk(\1, torch.size(\1, 0), "), _TOP_K),
    missing_expert=(code(r"_29, _31, _33", "_29, _31, torch.mul(_33, 0)"), _OWN),
    two_experts_exchanged=(code(r"= _3\.forward\(input2\)", "= _4.forward(input2)"), "holds 7"),
)

DENSE_BMM = _of(
    "llama4-v5-eager-4x64-block",
    activation=(code(r"torch\.mul\(up, act_fn\.forward\(input\)\)", "torch.mul(up, torch.mish(input))"), _UNKNOWN),
    extra_op=(code(r"torch\.bmm\((_\d+), down_proj\)", r"torch.bmm(torch.mul(\1, \1), down_proj)"), _UNKNOWN),
    top_k_of_the_input=(code(r"torch\.topk\(router_logits, 2, 1\)", "torch.topk(router_logits, torch.size(input, 0), 1)"), _TOP_K),
    weight_of_every_expert=(code(r"torch\.sigmoid\(input0\)", "torch.sigmoid(torch.clamp(input0, -9.0))"), "the choices' weights must be one value"),
    missing_expert=(code(r"torch\.sum\(_9, \[0\]\)", "torch.sum(torch.slice(_9, 0, 0, 7), [0])"), _DIFFERS),
    down_of_the_next_expert=(code(r"torch\.bmm\((_\d+), down_proj\)", r"torch.bmm(\1, torch.roll(down_proj, [1], [0]))"), _UNKNOWN),
)

CAPACITY = _of(
    "switch_transformers-v4-eager-4x64-block",
    activation=(code(r"torch\.relu\(", "torch.celu("), ""),
    extra_op=(code(r"(expert_2\.forward\(\w+\))", r"torch.mul(\1, 2)"), _SAME),
    shared_weights=(share("experts.expert_3.wi.weight", "experts.expert_2.wi.weight"), _TWICE),
    missing_expert=(drop_expert(3, r"torch\.index_put_\((next_states2), \w+, \w+\)", r"\1"), "baked: the graph holds 7 of the router's 8 experts"),
    one_expert_twice=(code(r"torch\.select\((_\d+), 2, 5\)", r"torch.select(\1, 2, 4)"), _ONE_VALUE),
)

ALL = GROUPED + BATCHED + GUARDED + LOOP + FLAT_LOOP + PARTS + INDEXED + SORTED_SLICES + DENSE_BMM + CAPACITY

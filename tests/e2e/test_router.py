# SPDX-License-Identifier: Apache-2.0
# Passes fuse-router and fuse-gate on real models: the router becomes one op, and every bit of the answers stays.
import pytest
import torch
from safetensors.torch import load_file

from e2e import tool

FUSED = [
    "mixtral5_grouped_lm_fp32",
    "mixtral5_grouped_lm_bf16",
    "mixtral5_grouped_lm_fp32_frozen",
    "mixtral5_grouped_block_logits",
    "qwen3moe5_batched_block_fp32",
    "qwen3moe5_grouped_block_bf16",
    "mixtral4_dense_mask_trace_lm_fp32",
    "mixtral4_sparse_if_script_lm_fp32",
    "mixtral4_dense_scatter_script_block_fp32",
    "afmoe-v5-grouped-block",
    "deepseek_v2-v4-eager-4x64-block",
    "ernie4_5_moe-v5-grouped-block",
    "granitemoe-v5-grouped-block",
    "jamba-v5-grouped-block",
    "lfm2_moe-v5-grouped-block",
    "longcat_flash-v5-eager-4x64-block",
    "minimax_m2-v5-grouped-block",
    "olmoe-v5-grouped-block",
]

# Their blocks return the logits.
WITH_LOGITS = {"mixtral5_grouped_block_logits", "mixtral4_sparse_if_script_lm_fp32"}


def routes_of(model: torch.jit.ScriptModule) -> list[str]:
    """The schemas' names of all graphs' routes."""
    methods = [module._c._get_method(name) for module in model.modules() for name in module._c._method_names()]
    nodes = [node for method in methods for node in method.graph.findAllNodes("autoep::route", recurse=True)]
    return [str(node.schema()).split("(")[0] for node in nodes]


def block_ops(model: torch.jit.ScriptModule) -> list[str]:
    """The ops of all graphs that compute experts."""
    graphs = [module._c._get_method(name).graph for module in model.modules() for name in module._c._method_names()]
    kinds = [[node.kind() for node in graph.nodes()] for graph in graphs]
    return [kind for of_graph in kinds if "autoep::moe" in of_graph for kind in of_graph]


@pytest.mark.parametrize("name", FUSED)
def test_one_op_a_layer_and_the_same_bits(name, models, tmp_path):
    import autoep

    loaded = {}
    for router in ("route", "keep"):
        tool.succeed("convert", models[name], "--ep-size", 1, "--router", router, "-o", tmp_path / router)
        loaded[router] = autoep.load(str(tmp_path / router))
    ops = block_ops(loaded["route"])
    assert ops.count("autoep::route") == ops.count("autoep::moe") > 0
    assert "aten::topk" not in ops
    assert set(routes_of(loaded["route"])) == {"autoep::route" if name in WITH_LOGITS else "autoep::route.linear"}
    assert "aten::topk" in block_ops(loaded["keep"])
    examples = sorted(models.folder.glob(f"{name}.*.inputs.safetensors"))
    assert len(examples) >= 3
    for inputs in map(load_file, examples):
        with torch.no_grad():
            found, expected = (loaded[router](**inputs) for router in ("route", "keep"))
        found, expected = ((t,) if isinstance(t, torch.Tensor) else t for t in (found, expected))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["mixtral5_grouped_lm_fp32", "mixtral5_grouped_lm_bf16"])
def test_where_logits_are_not_rounded_only_near_ties_move(name, models, tmp_path):
    import autoep

    autoep.load_library()
    tool.succeed("convert", models[name], "--ep-size", 2, "--router", "wide", "-o", tmp_path / "out")
    model = torch.jit.load(str(tmp_path / "out" / "model.pt"))
    assert set(routes_of(model)) == {"autoep::route.linear"}
    found = tool.succeed("verify", tmp_path / "out", "--source", models[name], "--json").json()
    assert sum(case["flips"] for case in found["cases"]) <= (2 if "bf16" in name else 0)

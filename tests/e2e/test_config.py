# SPDX-License-Identifier: Apache-2.0
# --config and custom presets on real models: what they choose, what they select, and what they must not say.
import json

import pytest

from e2e import manifest, tool

LM = "mixtral5_grouped_lm_fp32"
SCRIPTED = "mixtral4_dense_scatter_script_block_fp32"

PRESET = r"""
name: mine
moe_layer_pattern: model\.model\.layers\.\d+\.mlp
router_pattern: gate
expert_pattern: experts
expert_w1: gate_up_proj
expert_w2: down_proj
"""

SCRIPTED_PRESET = """
moe_layer_pattern: '.*'
router_pattern: gate
expert_pattern: experts
expert_w1: w1
expert_w2: w2
expert_w3: w3
num_experts_attr: num_experts
top_k_attr: top_k
"""


@pytest.fixture
def written(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_deepspeed_config_chooses_the_size(models, written, tmp_path):
    section = {"enabled": True, "autoep_size": 4, "preset_model": "mixtral", "top_k": 2, "score_func": "softmax", "route_norm": True}
    config = written("ds.json", json.dumps({"train_batch_size": 8, "expert_parallel": section}, indent="\t"))
    tool.succeed("convert", models[LM], "--config", config, "-o", tmp_path / "out")
    assert manifest.read(tmp_path / "out")["ep_size"] == 4


def test_options_win_over_the_config(models, written, tmp_path):
    config = written("c.yaml", "expert_parallel:\n  autoep_size: 4\n  preset_model: qwen3_moe\n")
    tool.succeed("convert", models[LM], "--config", config, "--ep-size", 2, "--preset", "mixtral", "-o", tmp_path / "out")
    assert manifest.read(tmp_path / "out")["ep_size"] == 2


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("top_k: 4", "c.yaml:2:10", "which shows 2"),
        ("score_func: sigmoid", "c.yaml:2:15", "which shows softmax"),
        ("route_norm: false", "c.yaml:2:15", "which shows true"),
        ("routed_scaling_factor: 2.5", "c.yaml:2:26", "which shows 1"),
        ("has_shared_experts: true", "c.yaml:2:23", "which shows no shared experts"),
        ("load_balance_coeff: 0.001", "c.yaml:2:23", "not supported"),
        ("autoep_sise: 2", "c.yaml:2:3", "did you mean 'autoep_size'?"),
        ("expert_w1: w1", "c.yaml:2:14", "expert_w1 and expert_w2"),
    ],
)
def test_what_is_not_so_is_refused_with_its_place(line, place, words, models, written, tmp_path):
    config = written("c.yaml", f"expert_parallel:\n  {line}\n")
    sentence = tool.fails(2, "convert", models[LM], "--config", config, "--ep-size", 2, "-o", tmp_path / "out")
    assert place in sentence and words in sentence
    assert not (tmp_path / "out").exists()


def test_a_size_must_come_from_somewhere(models, written, tmp_path):
    config = written("c.yaml", "expert_parallel:\n  preset_model: mixtral\n")
    assert "autoep_size" in tool.fails(2, "convert", models[LM], "--config", config, "-o", tmp_path / "out")


def test_a_custom_preset_names_the_layers(models, written, tmp_path):
    preset = written("mine.yaml", PRESET)
    tool.succeed("convert", models[LM], "--preset", preset, "--ep-size", 2, "-o", tmp_path / "out")
    assert [layer["family"] for layer in manifest.read(tmp_path / "out")["layers"]] == ["mine", "mine"]


def test_blocks_that_the_pattern_leaves_out_stay_as_they_are(models, written, tmp_path):
    preset = written("mine.yaml", PRESET.replace(r"\d+", "1"))
    outcome = tool.succeed("convert", models[LM], "--preset", preset, "--ep-size", 2, "-o", tmp_path / "out")
    assert [layer["path"] for layer in manifest.read(tmp_path / "out")["layers"]] == ["model.model.layers.1.mlp"]
    assert "left as it was: model.model.layers.0.mlp" in outcome.err


def test_the_attributes_of_a_scripted_block_must_agree(models, written, tmp_path):
    preset = written("mine.yaml", SCRIPTED_PRESET)
    tool.succeed("convert", models[SCRIPTED], "--preset", preset, "--ep-size", 2, "-o", tmp_path / "out")
    swapped = SCRIPTED_PRESET.replace("num_experts_attr: num_experts", "num_experts_attr: top_k")
    sentence = tool.fails(2, "convert", models[SCRIPTED], "--preset", written("s.yaml", swapped), "--ep-size", 2, "-o", tmp_path / "no")
    assert "s.yaml:8:19" in sentence and "'top_k' of (root) is 2, and its graph has 8 experts" in sentence


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("expert_w1: gate_up_proj", "expert_w1: down_proj", 2, "mine.yaml:6:12"),
        ("router_pattern: gate", "router_pattern: gat", 2, "did you mean 'gate'?"),
        ("expert_pattern: experts", "expert_pattern: gate", 2, "takes its experts from"),
        ("name: mine", "num_experts_attr: num_experts", 2, "keeps no whole number 'num_experts'"),
        (r"\.mlp", r"\.ffn", 4, "matches no MoE block; the blocks found are"),
        ("name: mine", "nam: mine", 2, "did you mean 'name'?"),
    ],
)
def test_a_custom_preset_that_is_not_so(old, new, code, words, models, written, tmp_path):
    preset = written("mine.yaml", PRESET.replace(old, new))
    assert words in tool.fails(code, "convert", models[LM], "--preset", preset, "--ep-size", 2, "-o", tmp_path / "out")


def test_presets_check_reads_custom_presets(written):
    assert "OK presets check mine" in tool.succeed("presets", "check", written("mine.yaml", PRESET)).out
    assert "mine.yaml:3:1: unknown key" in tool.fails(2, "presets", "check", written("mine.yaml", PRESET.replace("moe_", "mo_")))

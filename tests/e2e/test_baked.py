# SPDX-License-Identifier: Apache-2.0
# Traces that are right only for the experts, or the batch, of their example: the file itself is wrong or raises, and the
# converted model gives what Python's eager model gives.
import pytest
import torch
from safetensors.torch import load_file

from e2e import manifest, tool
from e2e.cases import Case
from models import corpus, renamed

NO_MOE = 4
SHAPES = ["2x12", "1x1"]

# A loop over the experts hit, one over all that drops those not hit, constant group sizes, an index into stacked weights.
BAKED = {
    "mixtral-v4-eager-1x4-block": "those that the trace's example chose",
    "deepseek_v3-v4-eager-1x4-block": "those that the trace's example chose",
    "granitemoe-v4-eager-1x4-block": "the number of rows that each expert got",
    "granitemoe-v4-eager-4x64-block-frozen": "the number of rows that each expert got",
    "mixtral-v5-eager-1x4-block": "works only on inputs that choose",
    # Weights read from a table, flat weights, a mask for each expert.
    "gpt_oss-v4-eager-1x4-block": "works only on inputs that choose",
    "dbrx-v5-eager-1x4-block": "works only on inputs that choose",
    "switch_transformers-v4-eager-1x4-block": "the number of rows that each expert got",
    "switch_transformers-v5-eager-1x4-block": "those that the trace's example chose",
    # Experts that answer the token itself, of which the example hit one (4) or none (5).
    "longcat_flash-v4-eager-1x4-block": "the graph holds 7 of the router's 10 experts",
    "longcat_flash-v5-eager-1x4-block": "the graph holds 6 of the router's 10 experts",
}
BOUND = "mixtral-v5-grouped-1x12-lm"


def check_run(directory, models, model: str, tmp_path, shapes=SHAPES) -> None:
    for shape in shapes:
        output = tmp_path / f"{shape}.safetensors"
        tool.succeed("run", directory, "--inputs", models.inputs(model, shape), "-o", output)
        found, expected = load_file(output)["output.0"], load_file(models.outputs(model, shape))["output.0"]
        assert (found - expected).abs().max() <= 2e-4 * expected.abs().max(), shape


@pytest.mark.parametrize("model", BAKED)
def test_a_baked_block_is_rebuilt(model, models, conversions, tmp_path):
    source = torch.jit.load(models[model])
    assert corpus.worst([corpus.verdict(source, str(models.folder / f"{model}.{shape}")) for shape in SHAPES]) != "right"
    assert "the file itself is wrong for other inputs" in tool.succeed("inspect", models[model]).out
    directory = conversions[Case(model, 2)]
    (layer,) = manifest.read(directory)["layers"]
    assert BAKED[model] in layer["rebuilt"] and layer["num_experts"] == 8
    check_run(directory, models, model, tmp_path)


def test_verify_compares_with_the_dense_mathematics(models, conversions):
    model = "mixtral-v4-eager-1x4-block"
    found = tool.succeed("verify", conversions[Case(model, 2)], "--source", models[model], "--json").json()
    assert [case["name"] for case in found["cases"]] == ["2x12", "3x5", "1x1"] and found["max_error"] <= 2e-5
    assert "compared with the dense sum over all experts" in found["notes"][0]


def test_a_model_bound_to_a_batch_of_1_serves_every_batch(models, conversions, tmp_path):
    inspected = tool.succeed("inspect", models[BOUND]).out
    assert "Bound to a batch of 1 by" in inspected and "masking_utils.py" in inspected
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.jit.load(models[BOUND])(**load_file(models.inputs(BOUND, "2x12")))
    check_run(conversions[Case(BOUND, 2)], models, BOUND, tmp_path)


def test_without_the_pass_the_limit_is_said(models, tmp_path):
    words = ["convert", models[BOUND], "--ep-size", 2, "-o", tmp_path / "bound", "--disable-pass", "widen-batch"]
    assert "Limit: it serves a batch of 1 only" in tool.succeed(*words).out
    assert any("batch of 1 only" in limit for limit in manifest.read(tmp_path / "bound")["limits"])


def test_a_capacity_that_the_trace_took_from_its_example_is_lifted(models, conversions, tmp_path):
    """NLLB computes it from the number of tokens, 12 in the trace's example."""
    model = "nllb_moe-v4-eager-1x12-lm"
    source = torch.jit.load(models[model])
    assert corpus.verdict(source, str(models.folder / f"{model}.2x33")) == "wrong"
    assert "capacity tokens" in tool.succeed("inspect", models[model]).out
    made = manifest.read(conversions[Case(model, 2)])
    assert all("12 tokens an expert, may be that of the trace's example" in layer["rebuilt"] for layer in made["layers"])
    assert sum("assumed: the capacity is the number of tokens" in limit for limit in made["limits"]) == len(made["layers"]) == 2
    check_run(conversions[Case(model, 2)], models, model, tmp_path, [*SHAPES, "2x33"])
    found = tool.succeed("verify", conversions[Case(model, 2)], "--source", models[model], "--json").json()
    assert found["max_error"] <= 2e-5 and "without a router's capacity" in found["notes"][0]


def test_a_capacity_of_no_known_family_is_refused(models, tmp_path):
    other = renamed.rename(models["nllb_moe-v4-eager-4x64-block"], tmp_path / "renamed.pt", seed=1)
    sentence = tool.fails(NO_MOE, "convert", other, "--ep-size", 2, "-o", tmp_path / "out")
    assert "baked: the capacity of its router, 256 tokens an expert" in sentence


def test_a_baked_block_with_such_a_capacity_is_refused(models, tmp_path):
    """Four tokens in the example: how many an expert may have of another number of tokens is not in the file."""
    for model in ("nllb_moe-v4-eager-1x4-block", "nllb_moe-v5-eager-1x4-block"):
        sentence = tool.fails(NO_MOE, "convert", models[model], "--ep-size", 2, "-o", tmp_path / model)
        assert "baked" in sentence and "the capacity of its router, 4 tokens an expert" in sentence

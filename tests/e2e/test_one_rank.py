# SPDX-License-Identifier: Apache-2.0
# Pass fuse-moe: on one rank each layer is one op, with the bits of dispatch, experts and combine.
import pytest
import torch
from safetensors.torch import load_file

from e2e import manifest, tool
from e2e.cases import Case
from e2e.rank import gradients_of, loss_of, outputs_of

# Weights after the expert and on its input, biases, a table of weights, constants in place of parameters, every dtype.
MODELS = [
    "mixtral5_grouped_lm_fp32",
    "mixtral5_grouped_lm_bf16",
    "mixtral5_grouped_lm_fp32_frozen",
    "mixtral4_sparse_if_script_lm_fp32",
    "gpt_oss-v5-grouped-block",
    "llama4-v5-eager-4x64-block",
    "switch_transformers-v4-eager-4x64-block",
]


@pytest.fixture(scope="module")
def both(models, tmp_path_factory):
    """Directories of a model on one rank, with moe and with the three ops."""
    made = {}

    def convert(name: str) -> dict:
        if name not in made:
            folder = tmp_path_factory.mktemp("one")
            words = ["convert", models[name], "--ep-size", 1, "-o"]
            tool.succeed(*words, folder / "one")
            tool.succeed(*words, folder / "three", "--disable-pass", "fuse-moe")
            made[name] = {"one": folder / "one", "three": folder / "three"}
        return made[name]

    return convert


def ops_of(directory) -> list[dict]:
    return [layer["ep_ops"] for layer in tool.succeed("inspect", directory, "--json").json()["layers"]]


def examples_of(models, name: str) -> list[dict]:
    found = [load_file(path) for path in sorted(models.folder.glob(f"{name}.*.inputs.safetensors"))]
    assert found
    return found


@pytest.mark.parametrize("name", MODELS)
def test_one_op_a_layer_and_the_same_bits(name, both, models):
    import autoep

    assert all(ops["moe"] > 0 and "dispatch" not in ops for ops in ops_of(both(name)["one"]))
    assert all(ops["dispatch"] > 0 and "moe" not in ops for ops in ops_of(both(name)["three"]))
    one, three = (autoep.load(str(both(name)[which])) for which in ("one", "three"))
    for inputs in examples_of(models, name):
        with torch.no_grad():
            found, expected = outputs_of(one(**inputs)), outputs_of(three(**inputs))
        assert found.keys() == expected.keys() and found
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize("name", ["mixtral5_grouped_lm_fp32", "gpt_oss-v5-grouped-block"])
def test_the_same_bits_of_every_gradient(name, both, models):
    import autoep

    inputs = examples_of(models, name)[0]
    found = []
    for which in ("one", "three"):
        model = autoep.load(str(both(name)[which]), trainable=True)
        loss_of(outputs_of(model(**inputs))).backward()
        found.append(gradients_of(model))
    assert found[0].keys() == found[1].keys() and any("gate_up" in parameter for parameter in found[0])
    for parameter, gradient in found[0].items():
        assert torch.equal(gradient, found[1][parameter]), parameter


def test_shards_and_manifest_are_the_same(both):
    one, three = (both("mixtral5_grouped_lm_fp32")[which] for which in ("one", "three"))
    shard = "experts-00000-of-00001.safetensors"
    assert (one / shard).read_bytes() == (three / shard).read_bytes()
    described = [{key: value for key, value in manifest.read(path).items() if key != "files"} for path in (one, three)]
    assert described[0] == described[1]


def test_several_ranks_keep_the_three(conversions):
    assert all(ops["dispatch"] == 1 and "moe" not in ops for ops in ops_of(conversions[Case("mixtral5_grouped_lm_fp32", 2)]))


def test_one_layer_may_be_left_out(models, tmp_path):
    model = models["mixtral5_grouped_lm_fp32"]
    tool.succeed("convert", model, "--ep-size", 1, "-o", tmp_path / "out", "--disable-pass", "fuse-moe:0")
    assert ["moe" in ops for ops in ops_of(tmp_path / "out")] == [False, True]
    tool.succeed("verify", tmp_path / "out", "--source", model)

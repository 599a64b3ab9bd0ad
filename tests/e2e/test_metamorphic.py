# SPDX-License-Identifier: Apache-2.0
# Names mean nothing: a file whose modules, attributes, classes and values have random names, its submodules in another order,
# gives the same layers and byte-equal shards. A baked block may be refused instead.
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from e2e import cases, manifest, tool
from models import archives, families, renamed

NO_MOE = 4
# What a layer is, apart from names.
_FACTS = ["form", "num_experts", "top_k", "hidden", "intermediate", "activation", "activation_args", "weights_act", "router"]


def layers_of(directory: Path) -> list[tuple]:
    """Of each layer its facts, and each tensor's role and bytes on each rank. The order of layers is that of submodules."""
    shards = [load_file(path) for path in sorted(directory.glob("experts-*.safetensors"))]
    layers = []
    for layer in manifest.read(directory)["layers"]:
        held = {tensor["role"]: [digest(shard[tensor["param"]]) for shard in shards] for tensor in layer["tensors"]}
        layers.append(({key: layer[key] for key in _FACTS}, held))
    return sorted(layers, key=str)


def digest(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} " + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def check(model: str, models, conversions, folder: Path) -> None:
    case = cases.Case(model, 2)
    outcome = conversions.outcome(case)
    other = renamed.rename(models[model], folder / "renamed.pt", seed=len(model))
    again = tool.autoep("convert", other, "--ep-size", 2, "-o", folder / "out")
    if outcome.code == 0 and again.code == NO_MOE:
        # Which number an expert has that a baked trace left out stands in its name alone.
        assert any(layer["rebuilt"] for layer in manifest.read(conversions[case])["layers"]), again.err
        assert "baked" in again.err
        return
    if outcome.code == NO_MOE and again.code == 0:
        # A block beside others, of which names alone say that it is baked.
        assert "baked" in outcome.err and "left as it was" in again.err, again.err
        return
    assert again.code == outcome.code, again.err
    if outcome.code == 0:
        assert layers_of(folder / "out") == layers_of(conversions[case])


_CHIEF = [f"{name}-{families.chief_forms(name)[0]}" for name in families.families()]


@pytest.mark.parametrize("model", _CHIEF)
def test_other_names_give_the_same_layers_and_shards(model, models, conversions, tmp_path):
    check(model, models, conversions, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("model", [case.model for case in cases.FULL_FAMILY_CASES])
def test_other_names_in_every_form(model, models, conversions, tmp_path):
    check(model, models, conversions, tmp_path)


def test_a_file_of_an_older_torch(models, conversions, tmp_path):
    """Its operators are upgraded while it is read: aten::div_ had another meaning in version 3 of the format."""
    archive = archives.read(models[_CHIEF[0]])
    archive.version = 3
    tool.succeed("convert", archives.write(archive, tmp_path / "old.pt"), "--ep-size", 2, "-o", tmp_path / "out")

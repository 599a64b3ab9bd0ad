# SPDX-License-Identifier: Apache-2.0
# Gradients of every parameter, summed over the ranks, equal the source's.
import warnings

import pytest
import torch
from safetensors.torch import load_file

from e2e import cases, launch, manifest
from e2e.rank import gradients_of, loss_of, outputs_of

LIMIT = 1e-4  # of a parameter's largest gradient
SHAPES = ["3x7", "2x12"]  # of rank 0 and rank 1


def source_gradients(path, inputs) -> dict[str, torch.Tensor]:
    """The source's own gradients over the tokens of all ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(path))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for file in inputs:
        loss_of(outputs_of(model(**load_file(file)))).backward()
    return gradients_of(model)


def check_gradient(found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    assert found.shape == expected.shape, where
    error = (found - expected).abs().max().item()
    assert error <= LIMIT * expected.abs().max().item(), f"{where}: {error:.2e} against {expected.abs().max().item():.2e}"


@pytest.mark.parametrize("case", cases.GRADIENT_CASES, ids=str)
def test_gradients_equal_the_sources(case, models, conversions, tmp_path):
    directory = conversions[case]
    inputs = [models.inputs(case.model, shape) for shape in SHAPES[: case.ep_size]]
    job = launch.Job(str(case), directory, [inputs], gradients=True)
    done = launch.launch([job], case.ep_size, tmp_path / "ranks")
    found = [done.gradients(str(case), rank) for rank in range(case.ep_size)]
    check_gradients(directory, found, source_gradients(models[case.model], inputs))


def check_gradients(directory, found: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> None:
    """found: every rank's own; they sum to the source's."""
    compared = set()
    described = manifest.read(directory)
    for tensor in manifest.tensors(described):
        canonical = torch.cat([gradients.pop(tensor["param"]) for gradients in found])
        for part in tensor["source"]:
            compared.add(part["tensor"])
            check_gradient(manifest.canonical_slice(canonical, part), manifest.source_slice(expected[part["tensor"]], part), part["tensor"])
    for name in found[0]:
        compared.add(name)
        check_gradient(sum(gradients[name] for gradients in found), expected[name], name)
    assert compared == expected.keys()

# SPDX-License-Identifier: Apache-2.0
# Converted models on real processes answer as Python's eager model does, every rank with its own tokens, at shapes that were
# not traced, one token included.
import pytest
import torch
from safetensors.torch import load_file

from e2e import cases, compare, tool


@pytest.mark.parametrize("case", cases.ANSWER_CASES, ids=str)
def test_answers_equal_the_eager_model(case, models, conversions, answers):
    conversions[case]
    for step in range(len(cases.SHAPES)):
        for rank in range(case.ep_size):
            shape = cases.SHAPES[(step + rank) % len(cases.SHAPES)]
            found = answers[case].outputs(str(case), step, rank)
            expected = load_file(models.outputs(case.model, shape))
            compare.check_outputs(found, expected, f"{case} rank {rank} {shape}")


@pytest.mark.parametrize("case", [case for case in cases.ANSWER_CASES if "marker" in case.model], ids=str)
def test_markers_come_from_the_experts_that_were_chosen(case, models, conversions, answers):
    """Expert i answers i in the first half of a row, and 1 in channel i of the second: the row tells who answered."""
    conversions[case]
    for step in range(len(cases.SHAPES)):
        for rank in range(case.ep_size):
            rows = answers[case].outputs(str(case), step, rank)["output.0"].flatten(0, -2)
            half = rows.shape[-1] // 2
            shares = rows[:, half : half + 8]
            top_k = 3 if "qwen3" in case.model else 2
            assert ((shares != 0).sum(-1) == top_k).all()
            numbers = shares @ shares.new_tensor(range(8))
            assert (rows[:, :half] - numbers.unsqueeze(-1)).abs().max() <= 1e-5


def test_an_inlined_model_answers_too(models, tmp_path):
    """Its graph does all that its submodules did. They have their methods still, which nothing calls."""
    name = "mixtral5_grouped_lm_fp32"
    model = torch.jit.load(models[name])
    torch._C._jit_pass_inline(model.graph)
    model.save(str(tmp_path / "inlined.pt"))
    tool.succeed("convert", tmp_path / "inlined.pt", "--ep-size", 2, "-o", tmp_path / "out")
    tool.succeed("run", tmp_path / "out", "--inputs", models.inputs(name, "3x7"), "-o", tmp_path / "found.safetensors")
    compare.check_outputs(load_file(tmp_path / "found.safetensors"), load_file(models.outputs(name, "3x7")), "inlined")

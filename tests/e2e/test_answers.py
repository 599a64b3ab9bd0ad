# SPDX-License-Identifier: Apache-2.0
# Converted models on real processes answer as Python's eager model does, every rank with its own tokens, at shapes that were
# not traced, one token included.
import pytest
from safetensors.torch import load_file

from e2e import cases, compare


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

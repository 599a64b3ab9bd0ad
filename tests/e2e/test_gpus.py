# SPDX-License-Identifier: Apache-2.0
# Models traced on the CPU, converted, on as many GPUs as ranks over NCCL: the source's answers and gradients. Skipped, with the
# reason, where there are fewer GPUs; tests/e2e/test_answers.py and test_gradients.py are the same over Gloo.
import pytest
import torch

from e2e import cases, launch
from e2e.test_gradients import SHAPES, check_gradients, source_gradients
from safetensors.torch import load_file

MODELS = ["mixtral5_grouped_lm_fp32", "qwen3moe5_grouped_lm_fp32"]
LIMIT = 2e-4  # of the largest logit: other kernels than the CPU's


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("model", MODELS)
def test_answers_and_gradients_over_nccl(model, ranks, models, conversions, tmp_path):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"NCCL needs {ranks} GPUs, and there are {torch.cuda.device_count()}")
    directory = conversions[cases.Case(model, ranks)]
    check(model, directory, models, ranks, tmp_path, "cuda")


def check(model, directory, models, ranks, folder, device):
    shapes = [SHAPES[rank % len(SHAPES)] for rank in range(ranks)]
    inputs = [models.inputs(model, shape) for shape in shapes]
    done = launch.launch([launch.Job(model, directory, [inputs], gradients=True)], ranks, folder / "ranks", device)
    for rank, shape in enumerate(shapes):
        for name, expected in load_file(models.outputs(model, shape)).items():
            apart = (done.outputs(model, 0, rank)[name] - expected).abs().max().item()
            assert apart <= LIMIT * expected.abs().max().item(), f"{name} of rank {rank}: {apart:.2e} apart"
    check_gradients(directory, [done.gradients(model, rank) for rank in range(ranks)], source_gradients(models.folder / f"{model}.pt", inputs))

# SPDX-License-Identifier: Apache-2.0
# A model traced on the CPU, converted, runs on another device. No GPU is needed: fake tensors carry the device "cuda", and
# torch refuses what mixes them with the CPU's.
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from e2e import tool

MODELS = ["mixtral5_grouped_lm_fp32", "qwen3moe5_batched_lm_fp32", "mixtral4_dense_mask_trace_lm_fp32"]


@pytest.fixture(scope="module")
def both(models, tmp_path_factory):
    """Directories converted with --device any and with --device cpu, by model."""
    made = {}

    def convert(name: str) -> dict:
        if name not in made:
            folder = tmp_path_factory.mktemp("device")
            for device in ("any", "cpu"):
                tool.succeed("convert", models[name], "--ep-size", 1, "--device", device, "-o", folder / device)
            made[name] = {device: folder / device for device in ("any", "cpu")}
        return made[name]

    return convert


def load(directory):
    import autoep

    return autoep.load(str(directory))


def devices_named(model: torch.jit.ScriptModule) -> list[str]:
    """Every constant device in the graphs of all methods of all modules."""
    found = []
    for module in model.modules():
        for name in module._c._method_names():
            for node in module._c._get_method(name).graph.findAllNodes("prim::Constant", recurse=True):
                if str(node.output().type()) == "Device":
                    found.append(node.s("value"))
    return found


def move_to_fake(model: torch.jit.ScriptModule, device: str) -> None:
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            setattr(module, name, torch.nn.Parameter(fake, False) if isinstance(tensor, torch.nn.Parameter) else fake)


class FakesBesideNumbers(FakeTensorMode):
    """Sizes that a trace holds as tensors without dimensions stay real: a graph reads their values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        numbers = tensors and all(tensor.dim() == 0 and not isinstance(tensor, FakeTensor) for tensor in tensors)
        if numbers and not any(isinstance(leaf, torch.device) and leaf.type != "cpu" for leaf in leaves):
            with no_dispatch():
                return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def run_on_fake(model: torch.jit.ScriptModule, inputs: dict[str, torch.Tensor]) -> torch.device:
    with torch.no_grad(), torch.jit.optimized_execution(False):
        model(**inputs)  # LibTorch prepares the graph at its first run, and compares constants, which fakes cannot be
        with FakesBesideNumbers(allow_non_fake_inputs=True):
            move_to_fake(model, "cuda")
            fakes = {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in inputs.items()}
            return model(**fakes).device


@pytest.mark.parametrize("name", MODELS)
def test_no_cpu_constant_is_left_and_the_answers_are_the_same_bits(name, both, models):
    followed, fixed = (load(both(name)[device]) for device in ("any", "cpu"))
    assert "cpu" in devices_named(fixed), "the trace names no device: it is no test"
    assert devices_named(followed) == []
    for shape in ("2x12", "3x7"):
        inputs = load_file(models.inputs(name, shape))
        with torch.no_grad():
            assert torch.equal(followed(**inputs), fixed(**inputs))


@pytest.mark.parametrize("name", MODELS)
def test_runs_on_another_device(name, both, models):
    inputs = load_file(models.inputs(name, "3x7"))
    assert run_on_fake(load(both(name)["any"]), inputs).type == "cuda"
    with pytest.raises(RuntimeError, match="failed in the TorchScript interpreter"):
        run_on_fake(load(both(name)["cpu"]), inputs)


def test_unknown_device_is_refused(models, tmp_path):
    sentence = tool.fails(2, "convert", models[MODELS[0]], "--ep-size", 1, "--device", "cdu", "-o", tmp_path / "out")
    assert "did you mean 'cpu'?" in sentence

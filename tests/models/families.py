# SPDX-License-Identifier: Apache-2.0
# The models of presets/*.yaml: each preset names the transformers class and the tiny configuration it is tested with, so that
# a family that gets a preset is built here, and tested, without another line.
import inspect
import re
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import yaml
from torch import nn

from models.spec import Built, Inputs, Spec, randomize, use_transformers

_PRESETS = Path(__file__).resolve().parents[2] / "presets"
SMALL, ALL_HIT = (1, 4), (4, 64)  # an example that leaves experts without a token, and one that leaves none


@dataclass(frozen=True)
class Family:
    name: str
    preset: Path
    block: str  # a regular expression for the class of the MoE block
    majors: tuple[int, ...]  # transformers versions

    @property
    def traced_whole(self) -> bool:
        """Whether a trace of the whole model is right for other lengths."""
        return self.test.get("whole_model", True)

    @property
    def test(self) -> dict:
        return yaml.safe_load(self.preset.read_text())["test"]


@cache
def families() -> dict[str, Family]:
    found = {}
    for path in sorted(_PRESETS.glob("*.yaml")):
        preset = yaml.safe_load(path.read_text())
        if "test" in preset:
            found[preset["name"]] = Family(preset["name"], path, preset["block"], tuple(preset["test"]["transformers"]))
    return found


def whole_model(family: Family, major: int, experts: str | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The language model with random weights. `experts` is transformers 5's experts_implementation; None is its default."""
    use_transformers(major)
    import transformers

    test = family.test
    config = getattr(transformers, test["config_class"])(**test["config"])
    config._attn_implementation = "eager"
    words = {"experts_implementation": experts} if experts else {}
    torch.manual_seed(0)
    model = getattr(transformers, test["model"])._from_config(config, dtype=dtype, **words)
    return randomize_biases(randomize(model)).eval()


def randomize_biases(model: nn.Module) -> nn.Module:
    """Biases count too, also those that only choose the experts: transformers starts both with zeros."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "bias" in name.rsplit(".", 1)[-1] and tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=generator).mul_(0.05).to(tensor.dtype)
    return model


def moe_blocks(model: nn.Module, family: Family) -> list[nn.Module]:
    return [module for module in model.modules() if re.fullmatch(family.block, type(module).__name__)]


class Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


class LogitsOfDecoder(Logits):
    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, decoder_input_ids=decoder_input_ids, use_cache=False).logits


class LogitsWithMask(Logits):
    """transformers 4 traces most of its models only with an explicit 4-D mask and positions."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits


def _ids(vocabulary: int, *names: str):
    def make(batch: int, length: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randint(3, vocabulary, (batch, length), generator=generator) for name in names}

    return make


def _with_mask(make_ids, dtype: torch.dtype):
    def make(batch: int, length: int, seed: int) -> Inputs:
        mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)
        return make_ids(batch, length, seed) | {
            "attention_mask": mask.expand(batch, 1, length, length).contiguous(),
            "position_ids": torch.arange(length).expand(batch, length).contiguous(),
        }

    return make


def rows(argument: str, width: int):
    def make(batch: int, length: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return {argument: torch.randn(batch, length, width, generator=generator)}

    return make


def lm(name: str, major: int, experts: str | None, example: tuple[int, int], dtype: torch.dtype = torch.float32) -> Built:
    model = whole_model(families()[name], major, experts, dtype)
    if model.config.is_encoder_decoder:
        make = _ids(model.config.vocab_size, "input_ids", "decoder_input_ids")
        return Built(LogitsOfDecoder(model).eval(), make, example)
    make = _ids(model.config.vocab_size, "input_ids")
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if major == 4 and takes_positions and not hasattr(model.config, "mamba_d_state"):
        return Built(LogitsWithMask(model).eval(), _with_mask(make, dtype), example)
    return Built(Logits(model).eval(), make, example)


def block(name: str, major: int, experts: str | None, example: tuple[int, int], script: bool = False) -> Built:
    """The last MoE block of the model, alone."""
    family = families()[name]
    model = whole_model(family, major, experts)
    moe = moe_blocks(model, family)[-1]
    argument = next(iter(inspect.signature(moe.forward).parameters))
    return Built(moe, rows(argument, model.config.hidden_size), example, script=script)


# Families whose experts of transformers 5 have one implementation only.
_ONE_IMPLEMENTATION = ("llama4", "dbrx", "longcat_flash", "switch_transformers", "nllb_moe")
# Freezing is not a family's matter; one of each form shows it.
_FROZEN = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "olmoe", "jamba", "llama4", "nemotron_h", "granitemoe")
_SCRIPTABLE = ("dbrx",)
_COUNTED = ("nllb_moe",)  # a capacity that is computed from the number of tokens
_PARTLY_BAKED = ("dots1",)  # on an example that leaves out experts of one layer and none of another


def _eager_forms(family: Family, major: int, experts: str | None) -> dict[str, Spec]:
    forms = {}
    for example in (SMALL, ALL_HIT):
        shape = f"{example[0]}x{example[1]}"
        build = partial(block, family.name, major, experts, example)
        summary = f"{family.name} block of transformers {major}, eager, example {shape}"
        forms[f"v{major}-eager-{shape}-block"] = Spec(summary, build, major, checked=False)
    return forms


def _transformers5(family: Family) -> dict[str, Spec]:
    name = family.name
    if name in _ONE_IMPLEMENTATION:
        whole = Spec(f"{name} of transformers 5, example 4x64", partial(lm, name, 5, None, ALL_HIT), 5, checked=False)
        return {"v5-eager-4x64-lm": whole} | _eager_forms(family, 5, None)
    forms = {}
    for short in ("grouped", "batched"):
        build = partial(block, name, 5, f"{short}_mm", (2, 12))
        forms[f"v5-{short}-block"] = Spec(f"{name} block of transformers 5, {short}_mm", build, 5)
    if family.traced_whole:
        build = partial(lm, name, 5, "grouped_mm", (2, 12))
        forms["v5-grouped-lm"] = Spec(f"{name} of transformers 5, grouped_mm", build, 5)
        build = partial(lm, name, 5, "grouped_mm", (1, 12))
        forms["v5-grouped-1x12-lm"] = Spec(f"{name} of transformers 5, grouped_mm, example 1x12", build, 5, checked=False)
    return forms | _eager_forms(family, 5, "eager")


def _transformers4(family: Family) -> dict[str, Spec]:
    forms = _eager_forms(family, 4, None)
    if family.traced_whole:
        build = partial(lm, family.name, 4, None, ALL_HIT)
        forms["v4-eager-4x64-lm"] = Spec(f"{family.name} of transformers 4, example 4x64", build, 4, checked=False)
    if family.name in _COUNTED:
        build = partial(lm, family.name, 4, None, (1, 12))
        forms["v4-eager-1x12-lm"] = Spec(f"{family.name} of transformers 4, example 1x12", build, 4, checked=False)
    return forms


@cache
def forms_of(name: str) -> dict[str, Spec]:
    """All files of a family that the tests know, by what follows the family in their names. Those that are not `checked`
    may be bound to their example."""
    family, forms = families()[name], {}
    if 5 in family.majors:
        forms |= _transformers5(family)
    if 4 in family.majors:
        forms |= _transformers4(family)
    if name in _FROZEN:
        for form, spec in list(forms.items()):
            if "1x4" not in form and "1x12" not in form:
                summary = f"{spec.summary}, frozen"
                forms[f"{form}-frozen"] = Spec(summary, spec.build, spec.transformers, freeze=True, checked=spec.checked)
    if name in _PARTLY_BAKED:
        build = partial(lm, name, 4, None, (2, 12))
        summary = f"{name} of transformers 4, example 2x12, frozen"
        forms["v4-eager-2x12-lm-frozen"] = Spec(summary, build, 4, freeze=True, checked=False)
    if name in _SCRIPTABLE:
        for major in family.majors:
            summary = f"{name} block of transformers {major}, scripted"
            forms[f"v{major}-script-block"] = Spec(summary, partial(block, name, major, None, SMALL, script=True), major)
    return forms


def family_models() -> dict[str, Spec]:
    return {f"{name}-{form}": spec for name in families() for form, spec in forms_of(name).items()}


def chief_forms(name: str) -> list[str]:
    """One of transformers 5 and, if the family is there, one of transformers 4."""
    forms = forms_of(name)
    first = next(form for form in ("v5-grouped-block", "v5-eager-4x64-block", "v4-eager-4x64-block") if form in forms)
    second = next((form for form in ("v4-eager-4x64-block", "v5-batched-block") if form in forms and form != first), None)
    return [first] + ([second] if second else [])

# SPDX-License-Identifier: Apache-2.0
# One small MoE block of every class of transformers 5 that uses the experts interface, known by introspection and not by name:
# python -m models.sweep -o FOLDER. sweep.json says which class each file is of, or why it could not be made.
import argparse
import importlib
import inspect
import json
import re
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from models import build
from models.families import randomize_biases, rows
from models.spec import Built, Spec, randomize, use_transformers

_USES = re.compile(r"^@use_experts_implementation.*?^class (\w+)", re.MULTILINE | re.DOTALL)
# Sizes of a small configuration, by what the field's name says. The first that matches counts.
_SIZES = [
    (r"num_experts_per_tok(en)?|top_k_experts|moe_(topk|k|top_k|router_topk)|num_selected_experts|top_k", 3),
    (r"(n_routed|num(_local|_routed)?|moe_num(_routed)?)_experts", 8),
    (r"n_shared_experts", 1),
    (r"num_hash_layers", 0),
    (r"n_group|num_expert_group", 4),
    (r"topk_group", 2),
    (r"num_hidden_layers", 2),
    (r"hidden_size|d_model|hidden_dim", 64),
    (r"(moe|expert)\w*_(intermediate|hidden)_size|(intermediate|ffn_hidden)_size|moe_latent_size", 96),
    (r"shared\w*_intermediate_size", 80),
]


def experts_classes() -> list[tuple[str, str]]:
    """(module, class) of all that use the experts interface."""
    use_transformers(5)
    import transformers

    found = []
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        module = f"transformers.models.{path.parent.name}.{path.stem}"
        found += [(module, name) for name in _USES.findall(path.read_text())]
    return found


def _block_class(module, experts: str) -> type[nn.Module]:
    """The class that makes the experts in its __init__."""
    for _, kind in inspect.getmembers(module, inspect.isclass):
        makes = issubclass(kind, nn.Module) and "__init__" in vars(kind) and kind.__module__ == module.__name__
        if makes and re.search(rf"\b{experts}\(", inspect.getsource(kind.__init__)):
            return kind
    raise LookupError(f"no class of {module.__name__} makes {experts}")


def _config_classes(module) -> list[type]:
    folder = module.__name__.rsplit(".", 2)[-2]
    configuration = importlib.import_module(f"transformers.models.{folder}.configuration_{folder}")
    classes = [kind for _, kind in inspect.getmembers(configuration, inspect.isclass) if kind.__module__ == configuration.__name__]
    experts_first = sorted(classes, key=lambda kind: not any("expert" in name for name in vars(kind).get("__annotations__", {})))
    return [kind for kind in experts_first if kind.__name__.endswith("Config")]


def _small(config):
    for name, value in list(vars(config).items()):
        size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
        if size is None or isinstance(value, bool) or value is None and "group" in name:
            continue
        if isinstance(value, list):
            value = [size] * len(value)
        elif "group" in name and value == 1:
            value = 1
        else:
            value = size
        setattr(config, name, value)
    config.enable_moe_block = True  # gemma4's
    config._experts_implementation = "grouped_mm"
    config._attn_implementation = "eager"
    return config


def _annotated_config(kind: type) -> str:
    annotation = inspect.signature(kind.__init__).parameters["config"].annotation
    return getattr(annotation, "__name__", str(annotation))


class RoutedLayer(nn.Module):
    """The MoE part of a decoder layer that holds router and experts itself, each behind a norm of its own (gemma4)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.router, self.norm, self.experts = layer.router, layer.pre_feedforward_layernorm_2, layer.experts

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, ids = self.router(flat)
        return self.experts(self.norm(flat), ids, weights).reshape(hidden_states.shape)


def _construct(kind: type[nn.Module], config, words: dict) -> nn.Module:
    """Sizes that the configuration does not have, though the class reads them, are added."""
    while True:
        torch.manual_seed(0)
        try:
            return kind(config, **words)
        except AttributeError as error:
            missing = getattr(error, "name", None)
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, missing or "")), None)
            if size is None or hasattr(config, missing):
                raise
            setattr(config, missing, size)


def make_block(module_name: str, experts: str) -> nn.Module:
    use_transformers(5)
    module = importlib.import_module(module_name)
    kind = _block_class(module, experts)
    asked = inspect.signature(kind.__init__).parameters
    whole_layer = kind.__name__.endswith("DecoderLayer")
    words = {name: value for name, value in {"layer_idx": 0 if whole_layer else 7, "intermediate_size": 96}.items() if name in asked}
    failures = []
    for config in sorted(_config_classes(module), key=lambda config: config.__name__ != _annotated_config(kind)):
        try:
            block = _construct(kind, _small(config()), words)
        except (AttributeError, TypeError) as error:  # the configuration of another part of the model
            failures.append(error)
            continue
        if whole_layer:
            block = RoutedLayer(block)
        return randomize_biases(randomize(block.float())).eval()
    raise failures[0]


def make(module: str, experts: str, folder: Path) -> None:
    block = make_block(module, experts)
    argument = next(iter(inspect.signature(block.forward).parameters))
    width = next(p.shape[-1] for name, p in block.named_parameters() if p.dim() == 2)
    built = Built(block, rows(argument, width))
    model = build.to_torchscript(built, Spec("", lambda: built))
    torch.jit.save(model, str(folder / f"{experts}.pt"))
    build.save_references(built, torch.jit.load(str(folder / f"{experts}.pt")), folder, experts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.sweep")
    parser.add_argument("names", nargs="*", metavar="CLASS", help="of experts; all, if none is given")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.output.mkdir(parents=True, exist_ok=True)
    made = {}
    for module, experts in experts_classes():
        if args.names and experts not in args.names:
            continue
        try:
            with torch.no_grad():
                make(module, experts, args.output)
            made[experts] = ""
        except Exception as error:
            made[experts] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        print(experts, made[experts] or "made", file=sys.stderr, flush=True)
    (args.output / "sweep.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()

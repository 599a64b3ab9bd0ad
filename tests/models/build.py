# SPDX-License-Identifier: Apache-2.0
# Makes test models: python -m models.build NAME... -o FOLDER
# For each NAME: NAME.pt, and for several shapes what Python's eager model answers, in NAME.BxL.inputs.safetensors (keyed by
# argument name) and NAME.BxL.outputs.safetensors (keyed "output.0", "output.1", ...).
import argparse
import fnmatch
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.registry import registry
from models.spec import Built, Spec


def to_torchscript(built: Built, spec: Spec) -> torch.jit.ScriptModule:
    if built.script:
        model = torch.jit.script(built.module)
    else:
        example = built.make_inputs(*built.example, seed=1)
        model = torch.jit.trace(built.module, tuple(example.values()), strict=False)
    return torch.jit.freeze(model.eval()) if spec.freeze else model


def save_references(built: Built, model: torch.jit.ScriptModule, folder: Path, name: str, checked: bool = True) -> None:
    """Records the eager answers, and refuses a TorchScript file that does not give them: it would be no fair test."""
    for seed, (batch, length) in enumerate(built.shapes, start=2):
        inputs = built.make_inputs(batch, length, seed)
        outputs = flat(built.module(*inputs.values()))
        if checked:
            for eager, scripted in zip(outputs, flat(model(*inputs.values())), strict=True):
                torch.testing.assert_close(scripted, eager, msg=lambda text: f"{name} at {batch}x{length}: {text}")
        stem = folder / f"{name}.{batch}x{length}"
        save_file(inputs, f"{stem}.inputs.safetensors")
        save_file({f"output.{i}": t.contiguous() for i, t in enumerate(outputs)}, f"{stem}.outputs.safetensors")


def flat(outputs) -> list[torch.Tensor]:
    """The tensors of a block's answer, which may be tuples of tuples."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flat(part)]


def build(name: str, folder: Path, shapes: list[tuple[int, int]] | None = None) -> Path:
    """Makes one model; its transformers version must be the process's. `shapes` instead of the model's own."""
    spec = registry()[name]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    with torch.no_grad():
        built = spec.build()
        built.shapes = shapes or built.shapes
        model = to_torchscript(built, spec)
        torch.jit.save(model, str(path))
        save_references(built, torch.jit.load(str(path)), folder, name, spec.checked)
    return path


def _selected(patterns: list[str]) -> list[str]:
    names = registry()
    chosen = []
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise SystemExit(f"no model is called {pattern!r}: --list prints the names")
        chosen += [name for name in found if name not in chosen]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.build")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a name or a pattern, as in 'mixtral5_*'")
    parser.add_argument("-o", "--output", type=Path, help="the folder to write to")
    parser.add_argument("--list", action="store_true", help="print the names")
    args = parser.parse_args()
    if args.list:
        for name, spec in registry().items():
            print(f"{name:45s} {spec.summary}")
        return
    if not args.names or args.output is None:
        parser.error("give NAME... and -o FOLDER, or --list")
    for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
        warnings.filterwarnings("ignore", category=category)

    by_version: dict[int | None, list[str]] = {}
    for name in _selected(args.names):
        by_version.setdefault(registry()[name].transformers, []).append(name)
    if len(by_version) > 1:
        for names in by_version.values():
            subprocess.run([sys.executable, "-m", "models.build", *names, "-o", str(args.output)], check=True)
        return
    for names in by_version.values():
        for name in names:
            print(build(name, args.output), flush=True)


if __name__ == "__main__":
    main()

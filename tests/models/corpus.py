# SPDX-License-Identifier: Apache-2.0
# All models of the families, also those whose trace is bound to its example: python -m models.corpus -o FOLDER [PATTERN...]
# index.json says for each what it is, and for each probe whether the file gives Python's answer: "right", "wrong", "raises".
import argparse
import fnmatch
import json
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

from models import build
from models.families import family_models

PROBES = [(1, 12), (1, 5), (1, 29), (3, 12), (2, 64), (1, 1)]
_LIMIT = 2e-4  # of the largest output


def _is_right(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= _LIMIT * expected.abs().max())


def verdict(model: torch.jit.ScriptModule, stem: str) -> str:
    """What the file gives for one shape: STEM.inputs.safetensors against Python's STEM.outputs.safetensors."""
    expected = load_file(f"{stem}.outputs.safetensors")
    try:
        with torch.no_grad():
            found = build.flat(model(**load_file(f"{stem}.inputs.safetensors")))
    except Exception:
        return "raises"
    right = len(found) == len(expected) and all(_is_right(tensor, expected[f"output.{i}"]) for i, tensor in enumerate(found))
    return "right" if right else "wrong"


def worst(verdicts: list[str]) -> str:
    return next(word for word in ("wrong", "raises", "right") if word in verdicts)


def describe(name: str, folder: Path) -> dict:
    family, version, how, *rest = name.split("-")
    model = torch.jit.load(str(folder / f"{name}.pt"))
    probes = {f"{b}x{n}": verdict(model, str(folder / f"{name}.{b}x{n}")) for b, n in PROBES}
    return {
        "name": name,
        "family": family,
        "transformers": int(version[1:]),
        "how": how,
        "what": "lm" if "lm" in rest else "block",
        "frozen": "frozen" in rest,
        "verdict": worst(list(probes.values())),
        "probes": probes,
    }


def make(names: list[str], folder: Path) -> None:
    for name in names:
        try:
            build.build(name, folder, PROBES)
            entry = describe(name, folder)
        except Exception as error:
            entry = {"name": name, "verdict": "not built", "error": f"{type(error).__name__}: {str(error)[:300]}"}
        (folder / f"{name}.json").write_text(json.dumps(entry))
        print(name, entry["verdict"], entry.get("error", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.corpus")
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--transformers", type=int, choices=[4, 5], help="those of one version, without index.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.transformers is None:
        for major in ("5", "4"):
            words = [sys.executable, "-m", "models.corpus", *args.patterns, "-o", str(args.output), "--transformers", major]
            subprocess.run(words, check=True)
        entries = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-v*.json"))]
        (args.output / "index.json").write_text(json.dumps(entries, indent=1))
        return
    models = {name: spec for name, spec in family_models().items() if spec.transformers == args.transformers}
    make([name for name in models if any(fnmatch.fnmatch(name, pattern) for pattern in args.patterns)], args.output)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
# All models of the families, also those that a trace bound to its example: python -m models.corpus -o FOLDER [PATTERN...]
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

from models import build, families
from models.registry import registry

_LIMIT = 2e-4  # of the largest output


def _verdict(model: torch.jit.ScriptModule, stem: Path) -> str:
    inputs = load_file(f"{stem}.inputs.safetensors")
    expected = load_file(f"{stem}.outputs.safetensors")
    try:
        with torch.no_grad():
            found = build.flat(model(**inputs))
    except Exception:
        return "raises"
    for i, tensor in enumerate(found):
        truth = expected[f"output.{i}"]
        if tensor.shape != truth.shape:
            return "wrong"
        if truth.is_floating_point():
            worst = (tensor.double() - truth.double()).abs().max() / truth.double().abs().max().clamp(min=1e-30)
            if not worst <= _LIMIT:
                return "wrong"
        elif not torch.equal(tensor, truth):
            return "wrong"
    return "right"


def describe(name: str, folder: Path) -> dict:
    words = name.split("-")
    model = torch.jit.load(str(folder / f"{name}.pt"))
    probes = {f"{b}x{n}": _verdict(model, folder / f"{name}.{b}x{n}") for b, n in families.PROBES}
    verdicts = set(probes.values())
    return {
        "name": name,
        "family": words[0],
        "transformers": int(words[1].removeprefix("v")),
        "what": "lm" if "lm" in words else "block",
        "how": "script" if "script" in words else words[2],
        "frozen": "frozen" in words,
        "verdict": "wrong" if "wrong" in verdicts else "raises" if "raises" in verdicts else "right",
        "probes": probes,
    }


def make(names: list[str], folder: Path) -> None:
    for name in names:
        try:
            build.build(name, folder)
            entry = describe(name, folder)
        except Exception as error:
            entry = {"name": name, "verdict": "not built", "error": f"{type(error).__name__}: {str(error)[:300]}"}
        (folder / f"{name}.json").write_text(json.dumps(entry))
        print(name, entry["verdict"], entry.get("error", " ".join(entry.get("probes", {}).values())), flush=True)


def write_index(folder: Path) -> None:
    entries = [json.loads(path.read_text()) for path in sorted(folder.glob("*-v*.json"))]
    (folder / "index.json").write_text(json.dumps(entries, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.corpus")
    parser.add_argument("patterns", nargs="*", default=["*-v[45]-*"], metavar="PATTERN")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--major", type=int)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.major is None:
        for major in (5, 4):
            subprocess.run([sys.executable, "-m", "models.corpus", *args.patterns, "-o", str(args.output), "--major", str(major)], check=True)
        write_index(args.output)
        return
    models = registry()
    chosen = [n for n, spec in models.items() if spec.transformers == args.major and "-v" in n]
    make([n for n in chosen if any(fnmatch.fnmatch(n, p) for p in args.patterns)], args.output)


if __name__ == "__main__":
    main()

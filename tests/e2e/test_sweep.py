# SPDX-License-Identifier: Apache-2.0
# A sweep over every class of transformers 5 that uses the experts interface, also those that have no preset: its block, made
# small and traced, converts by structure alone and gives Python's answers, or is refused with a reason. The table is printed.
# Without --full: three classes of models that have no preset.
import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from e2e import cases, compare, launch, manifest, tool
from e2e.launch import Job

NO_MOE = 4
# Clamps on gate and up; router and experts behind a norm each; sigmoid scores with a bias.
QUICK = ["DeepseekV4Experts", "Gemma4TextExperts", "Glm5NextTextExperts"]


def make(folder, *names: str) -> dict[str, str]:
    """Blocks of the classes, all if none is named, in `folder`: for each class why it could not be made, or ""."""
    env = os.environ | {"PYTHONPATH": str(tool.REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "models.sweep", *names, "-o", str(folder)], env=env, check=True, stderr=subprocess.DEVNULL)
    return json.loads((folder / "sweep.json").read_text())


def convert(made: dict[str, str], folder, target, ranks: int) -> dict[str, tool.Outcome]:
    """How the conversion of each class that could be made ended."""
    target.mkdir()
    words = {name: (folder / f"{name}.pt", "--ep-size", ranks, "-o", target / name) for name, reason in made.items() if not reason}
    return {name: tool.autoep("convert", *each) for name, each in words.items()}


def check_answers(names: list[str], folder, target, ranks: int) -> None:
    """Each rank has another shape."""

    def shape_of(step: int, rank: int) -> str:
        return cases.SHAPES[(step + rank) % len(cases.SHAPES)]

    def inputs(name: str) -> list[list]:
        return [[folder / f"{name}.{shape_of(step, rank)}.inputs.safetensors" for rank in range(ranks)] for step in range(len(cases.SHAPES))]

    done = launch.launch([Job(name, target / name, inputs(name)) for name in names], ranks, target / "ranks")
    for name in names:
        for step in range(len(cases.SHAPES)):
            for rank in range(ranks):
                shape = shape_of(step, rank)
                expected = load_file(folder / f"{name}.{shape}.outputs.safetensors")
                compare.check_outputs(done.outputs(name, step, rank), expected, f"{name} rank {rank} of {ranks} {shape}")


def describe(name: str, reason: str, outcome, target) -> str:
    if reason:
        return f"{name:34} no block {reason}"
    if outcome.code == NO_MOE:
        return f"{name:34} refused  {outcome.err.strip().splitlines()[-1].rpartition('rewritten: ')[2]}"
    layer = manifest.read(target / name)["layers"][0]
    return f"{name:34} right    {layer['form']}, {layer['activation']}, family {layer['family']}"


def test_classes_without_a_preset_convert_by_structure(tmp_path):
    outcomes = convert(make(tmp_path, *QUICK), tmp_path, tmp_path / "converted", 2)
    assert {name: outcome.code for name, outcome in outcomes.items()} == dict.fromkeys(QUICK, 0)
    check_answers(QUICK, tmp_path, tmp_path / "converted", 2)


@pytest.mark.full
def test_no_class_is_wrong_and_nine_in_ten_convert(tmp_path, capsys):
    made = make(tmp_path)
    for ranks in (1, 2, 4):
        target = tmp_path / f"converted-{ranks}"
        outcomes = convert(made, tmp_path, target, ranks)
        right = [name for name, outcome in outcomes.items() if outcome.code == 0]
        for name, outcome in outcomes.items():
            assert outcome.code in (0, NO_MOE), f"{name}: {outcome.err}"
        check_answers(right, tmp_path, target, ranks)
        assert len(right) >= 0.9 * len(made)
        with capsys.disabled():
            if ranks == 1:
                print("", *(describe(name, reason, outcomes.get(name), target) for name, reason in made.items()), sep="\n")
            print(f"{len(right)} of {len(made)} converted for {ranks} rank(s)")

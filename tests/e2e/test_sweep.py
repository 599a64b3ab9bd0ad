# SPDX-License-Identifier: Apache-2.0
# A sweep over every class of transformers 5 that uses the experts interface, also those that have no preset: its block, made
# small and traced, converts by structure alone and gives Python's answers, or is refused with a reason. The table is printed.
import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from e2e import cases, compare, launch, manifest, tool
from e2e.launch import Job

pytestmark = pytest.mark.full
NO_MOE, RANKS = 4, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of blocks, and for each class why it could not be made, or ""."""
    folder = tmp_path_factory.mktemp("sweep")
    env = os.environ | {"PYTHONPATH": str(tool.REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "models.sweep", "-o", str(folder)], env=env, check=True, stderr=subprocess.DEVNULL)
    return folder, json.loads((folder / "sweep.json").read_text())


@pytest.fixture(scope="module")
def outcomes(made, tmp_path_factory):
    """Of each class that could be made: how its conversion ended, and where it is."""
    folder, target = made[0], tmp_path_factory.mktemp("converted")
    found = {}
    for name in (name for name, reason in made[1].items() if not reason):
        outcome = tool.autoep("convert", folder / f"{name}.pt", "--ep-size", RANKS, "-o", target / name)
        found[name] = (outcome, target / name)
    return found


def test_no_class_is_wrong_and_nine_in_ten_convert(made, outcomes, tmp_path, capsys):
    folder, reasons = made
    converted = {name: directory for name, (outcome, directory) in outcomes.items() if outcome.code == 0}
    steps = {name: [[folder / f"{name}.{shape}.inputs.safetensors"] * RANKS for shape in cases.SHAPES] for name in converted}
    done = launch.launch([Job(name, directory, steps[name]) for name, directory in converted.items()], RANKS, tmp_path / "ranks")
    table = []
    for name, reason in reasons.items():
        if name in converted:
            for step, shape in enumerate(cases.SHAPES):
                expected = load_file(folder / f"{name}.{shape}.outputs.safetensors")
                compare.check_outputs(done.outputs(name, step, 0), expected, f"{name} {shape}")
            layer = manifest.read(converted[name])["layers"][0]
            table.append(f"{name:34} right    {layer['form']}, {layer['activation']}, family {layer['family']}")
        elif name in outcomes:
            outcome = outcomes[name][0]
            assert outcome.code == NO_MOE, f"{name}: {outcome.err}"
            table.append(f"{name:34} refused  {outcome.err.strip().splitlines()[-1].rpartition('rewritten: ')[2]}")
        else:
            table.append(f"{name:34} no block {reason}")
    with capsys.disabled():
        print("", *table, f"{len(converted)} of {len(reasons)} converted", sep="\n")
    assert len(converted) >= 0.9 * len(reasons)

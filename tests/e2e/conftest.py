# SPDX-License-Identifier: Apache-2.0
# Fixtures: each model is made once a session, each conversion is done once, and all ranks of one size run in one launch.
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e import cases, launch, tool

_TESTS = Path(__file__).resolve().parents[1]


class Models:
    """The test models' folder. Those that the chosen tests name are made in one go."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder = folder
        missing = [name for name in names if not self.path(name).exists()]
        if missing:
            self._make(missing)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def __getitem__(self, name: str) -> Path:
        if not self.path(name).exists():
            self._make([name])
        return self.path(name)

    def inputs(self, name: str, shape: str) -> Path:
        return self.folder / f"{name}.{shape}.inputs.safetensors"

    def outputs(self, name: str, shape: str) -> Path:
        return self.folder / f"{name}.{shape}.outputs.safetensors"

    def _make(self, names: list[str]) -> None:
        env = os.environ | {"PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "models.build", *names, "-o", str(self.folder)], env=env, check=True)


class Conversions:
    """Converted directories, each made when it is first asked for."""

    def __init__(self, models: Models, folder: Path):
        self.models, self.folder = models, folder
        self.outcomes: dict[cases.Case, tool.Outcome] = {}

    def directory(self, case: cases.Case) -> Path:
        """The directory of a case, whether or not it could be made."""
        target = self.folder / str(case)
        if case not in self.outcomes:
            words = ["convert", self.models[case.model], "--ep-size", case.ep_size, "--layout", case.layout, "-o", target]
            self.outcomes[case] = tool.autoep(*words)
        return target

    def outcome(self, case: cases.Case) -> tool.Outcome:
        self.directory(case)
        return self.outcomes[case]

    def __getitem__(self, case: cases.Case) -> Path:
        target = self.directory(case)
        outcome = self.outcome(case)
        assert outcome.code == 0, f"converting {case} gave {outcome.code}:\n{outcome.err}"
        return target


def _chosen_cases(request: pytest.FixtureRequest) -> list[cases.Case]:
    named = [getattr(item, "callspec", _NoParams).params.get("case") for item in request.session.items]
    return list(dict.fromkeys(case for case in named if isinstance(case, cases.Case)))


class _NoParams:
    params: dict = {}


@pytest.fixture(scope="session")
def models(request, tmp_path_factory) -> Models:
    folder = os.environ.get("AUTOEP_TEST_MODELS")
    return Models(Path(folder) if folder else tmp_path_factory.mktemp("models"), [case.model for case in _chosen_cases(request)])


@pytest.fixture(scope="session")
def conversions(models, tmp_path_factory) -> Conversions:
    return Conversions(models, tmp_path_factory.mktemp("converted"))


def steps_of(models: Models, case: cases.Case) -> list[list[Path]]:
    """Every rank its own tokens: at each step another shape, and over the steps each rank sees all."""
    count = len(cases.SHAPES)
    return [[models.inputs(case.model, cases.SHAPES[(step + rank) % count]) for rank in range(case.ep_size)] for step in range(count)]


@pytest.fixture(scope="session")
def answers(request, models, conversions, tmp_path_factory) -> dict[cases.Case, launch.Answers]:
    """What the ranks of every chosen case answered."""
    by_size: dict[int, list[cases.Case]] = {}
    answered = cases.ANSWER_CASES + cases.FAMILY_CASES + cases.FULL_FAMILY_CASES
    for case in _chosen_cases(request):
        if case in answered and conversions.directory(case).is_dir():
            by_size.setdefault(case.ep_size, []).append(case)
    found = {}
    for ep_size, chosen in by_size.items():
        jobs = [launch.Job(str(c), conversions[c], steps_of(models, c), plain=c.layout == "per-rank") for c in chosen]
        done = launch.launch(jobs, ep_size, tmp_path_factory.mktemp("ranks") / f"ep{ep_size}")
        found |= {case: done for case in chosen}
    return found

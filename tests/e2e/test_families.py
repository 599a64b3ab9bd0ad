# SPDX-License-Identifier: Apache-2.0
# Every family that has a preset: real models of transformers, made from the preset's test section, give Python's answers on
# 1, 2 and 4 ranks at shapes that were not traced. A file bound to its example gives them too, rebuilt, or is refused.
import pytest
import torch
from safetensors.torch import load_file

from e2e import cases, compare, manifest
from models import corpus, families

NO_MOE = 4


@pytest.fixture(scope="session")
def verdicts(models):
    """Whether the source itself gives Python's answers: "right", "wrong", "raises"."""
    known = {}

    def verdict(model: str) -> str:
        if model not in known:
            source = torch.jit.load(models[model])
            known[model] = corpus.worst([corpus.verdict(source, str(models.folder / f"{model}.{shape}")) for shape in cases.SHAPES])
        return known[model]

    return verdict


@pytest.mark.parametrize("case", cases.FAMILY_PARAMS, ids=str)
def test_answers_equal_the_eager_model_or_the_file_is_refused(case, models, conversions, answers, verdicts):
    outcome = conversions.outcome(case)
    if outcome.code != 0:
        assert outcome.code == NO_MOE, outcome.err
        assert case.model in cases.REFUSED_FAMILIES or verdicts(case.model) != "right", outcome.err
        assert cases.REFUSED_FAMILIES.get(case.model, "") in outcome.err
        return
    assert case.model not in cases.REFUSED_FAMILIES
    for step in range(len(cases.SHAPES)):
        for rank in range(case.ep_size):
            shape = cases.SHAPES[(step + rank) % len(cases.SHAPES)]
            found = answers[case].outputs(str(case), step, rank)
            compare.check_outputs(found, load_file(models.outputs(case.model, shape)), f"{case} rank {rank} {shape}")


@pytest.mark.parametrize("name", families.families())
def test_the_family_is_known_by_its_name(name, conversions):
    """The block's class says the family, and the family's facts hold."""
    chief = [cases.Case(f"{name}-{form}", 2) for form in families.chief_forms(name)]
    case = next(case for case in chief if conversions.outcome(case).code == 0)
    layers = manifest.read(conversions[case])["layers"]
    assert [layer["family"] for layer in layers] == [name]

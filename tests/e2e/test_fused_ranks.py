# SPDX-License-Identifier: Apache-2.0
# convert --moe=fused: on several ranks each layer is one op, and verify finds every token as the source has it.
import shutil

import pytest

from e2e import sabotage, tool
from e2e.cases import Case

# Weights after the expert and on its input, biases, a per-rank layout.
CASES = [
    Case("mixtral5_grouped_lm_fp32", 2),
    Case("mixtral5_grouped_lm_bf16", 4),
    Case("mixtral4_sparse_if_script_lm_fp32", 2, "per-rank"),
    Case("gpt_oss-v5-grouped-block", 2),
    Case("llama4-v5-eager-4x64-block", 2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_op_a_layer_and_the_source_answers(case, models, tmp_path):
    words = ["--ep-size", case.ep_size, "--layout", case.layout, "--moe", "fused", "-o", tmp_path / "out"]
    tool.succeed("convert", models[case.model], *words)
    for layer in tool.succeed("inspect", tmp_path / "out", "--json").json()["layers"]:
        assert layer["ep_ops"]["moe.ranks"] == 1 and "dispatch" not in layer["ep_ops"]
    found = tool.succeed("verify", tmp_path / "out", "--source", models[case.model], "--json").json()
    assert found["bytes_proved"] and found["ranks"] == case.ep_size and sum(found["rank_rows"]) > 0
    assert found["max_error"] <= (2e-2 if "bf16" in case.model else 2e-5)


def test_the_op_of_one_rank_is_refused_on_several(models, conversions, tmp_path):
    one, several = (conversions[Case("mixtral5_grouped_lm_fp32", ranks)] for ranks in (1, 2))
    damaged = shutil.copytree(several, tmp_path / "converted")
    shutil.copy(one / "model.pt", damaged / "model.pt")
    sabotage.refresh(damaged)
    found = tool.fails(6, "verify", damaged, "--source", models["mixtral5_grouped_lm_fp32"])
    assert "autoep::moe, which is for one rank, and there are 2" in found


def test_an_unknown_choice_is_refused(models, tmp_path):
    assert "--moe" in tool.fails(2, "convert", models["mixtral5_grouped_lm_fp32"], "--ep-size", 2, "--moe", "one", "-o", tmp_path / "out")

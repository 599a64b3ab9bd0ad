# SPDX-License-Identifier: Apache-2.0
# verify and run as a user has them: what passes on real conversions, and what each kind of damage makes them say.
import json
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from e2e import manifest, sabotage, tool
from e2e.cases import Case

PLAIN = Case("mixtral5_grouped_lm_fp32", 2)
VERIFY = 6

PASSING = [
    PLAIN,
    Case("mixtral5_grouped_lm_fp32", 1),
    Case("mixtral5_grouped_lm_bf16", 4),
    Case("mixtral5_grouped_lm_fp32_frozen", 2),
    Case("qwen3moe5_batched_block_fp32", 2),
    Case("mixtral4_sparse_if_script_lm_fp32", 2),
    Case("mixtral4_sparse_if_script_lm_fp32", 2, "per-rank"),
]


@pytest.fixture
def damaged(conversions, tmp_path) -> Path:
    return shutil.copytree(conversions[PLAIN], tmp_path / "converted")


def verify(directory: Path, models, *words, case: Case = PLAIN) -> tool.Outcome:
    return tool.succeed("verify", directory, "--source", models[case.model], *words)


def verify_fails(directory: Path, models, *words) -> str:
    return tool.fails(VERIFY, "verify", directory, "--source", models[PLAIN.model], *words)


@pytest.mark.parametrize("case", PASSING, ids=str)
def test_a_good_conversion_passes(case, models, conversions, tmp_path):
    outcome = tool.succeed("verify", conversions[case], "--source", models[case.model], "--json", TMPDIR=str(tmp_path))
    found = outcome.json()
    assert found["status"] == "OK" and found["bytes_proved"] and found["ranks"] == case.ep_size
    assert found["max_error"] <= (2e-2 if "bf16" in case.model else 2e-5)
    # Two layers (a block alone is one), every rank its own tokens at 2x12, 3x5 and 1x1, and each token top_k times.
    layers, top_k = (1 if "_block" in case.model else 2), (3 if "qwen3" in case.model else 2)
    whole = [c for c in found["cases"] if "mlp" not in c["name"]]
    assert [c["tokens"] for c in whole] == [24 * case.ep_size, 15 * case.ep_size, case.ep_size]
    assert sum(found["rank_rows"]) == 40 * case.ep_size * layers * top_k
    assert found["rank_expert_bytes"] == [found["expert_bytes"] // case.ep_size] * case.ep_size
    assert tool.listing(tmp_path) == {}, "nothing is left behind"


def test_entries_for_identity_experts_belong_to_no_shard(models, conversions, tmp_path):
    """LongCat-Flash's gate_up has entries for the experts that answer the token itself: no other expert may be left out so."""
    case = Case("longcat_flash-v5-eager-4x64-block", 4)
    found = verify(conversions[case], models, "--json", case=case).json()
    assert found["bytes_proved"] and found["max_error"] <= 2e-5
    with zipfile.ZipFile(conversions[case] / "source.pt-skeleton") as skeleton:
        assert 10 * 192 * 64 * 4 in [record.file_size for record in skeleton.infolist()], "they stay in the skeleton"
    damaged = shutil.copytree(conversions[case], tmp_path / "converted")
    described = manifest.read(damaged)
    del described["layers"][0]["router"]["identity_experts"]
    (damaged / "autoep.json").write_text(json.dumps(described))
    sentence = tool.fails(VERIFY, "verify", damaged, "--source", models[case.model])
    assert "gate_up_proj" in sentence and "cannot hold 8 experts" in sentence


def test_text_ends_with_a_line_for_scripts(models, conversions):
    outcome = verify(conversions[PLAIN], models)
    assert outcome.last_line.startswith("autoep: OK verify 2 layers, 2 ranks, 80 tokens, 0 flips, max error ")
    assert "2x12" in outcome.out and "rows processed" in outcome.out


def test_blocks_alone(models, conversions):
    found = verify(conversions[PLAIN], models, "--blocks", "--json").json()
    assert found["blocks"] and len(found["cases"]) == 6
    assert all("mlp" in c["name"] for c in found["cases"])
    assert found["rank_expert_bytes"] == [found["expert_bytes"] // 2] * 2


def test_given_inputs(models, conversions):
    pattern = models.inputs(PLAIN.model, "3x7")
    found = verify(conversions[PLAIN], models, "--inputs", pattern, "--json").json()
    assert [(c["name"], c["tokens"]) for c in found["cases"]] == [("given", 42)]


def test_inputs_of_another_model_are_a_usage_error(models, conversions, tmp_path):
    save_file({"tokens": torch.zeros(2, 3, dtype=torch.long)}, tmp_path / "wrong.safetensors")
    sentence = tool.fails(2, "verify", conversions[PLAIN], "--source", models[PLAIN.model], "--inputs", tmp_path / "wrong.safetensors")
    assert "'tokens'" in sentence


def test_another_source(models, conversions):
    sentence = tool.fails(VERIFY, "verify", conversions[PLAIN], "--source", models["qwen3moe5_grouped_lm_fp32"])
    assert "is not the model that was converted" in sentence


# Damage that the manifest's digests show.


@pytest.mark.parametrize("name", ["model.pt", "experts-00001-of-00002.safetensors", "source.pt-skeleton"])
def test_one_flipped_bit(name, damaged, models):
    sabotage.flip_bit(damaged / name, (damaged / name).stat().st_size // 2)
    assert name in verify_fails(damaged, models)


@pytest.mark.parametrize("name", ["model.pt", "experts-00000-of-00002.safetensors"])
def test_a_missing_file(name, damaged, models):
    (damaged / name).unlink()
    assert name in verify_fails(damaged, models)


# Damage with digests that agree: the byte proof.


MISTAKES = {
    "two experts exchanged": ("down", lambda tensor: tensor[[1, 0, 2, 3]]),
    "gate and up swapped": ("gate_up", lambda tensor: torch.cat(tensor.chunk(2, 1)[::-1], 1)),
    "an expert dropped, the next in its place": ("gate_up", lambda tensor: tensor[[0, 2, 3, 3]]),
    "an expert left out": ("down", lambda tensor: tensor * torch.tensor([1.0, 1.0, 0.0, 1.0]).view(-1, 1, 1)),
    "a matrix transposed": ("down", lambda tensor: tensor.transpose(1, 2).reshape(tensor.shape)),
    "gate and up interleaved": ("gate_up", lambda tensor: torch.stack(tensor.chunk(2, 1), 2).reshape(tensor.shape)),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_repacking(mistake, rank, damaged, models):
    role, change = MISTAKES[mistake]
    name = sabotage.change_shard(damaged, rank, role, change)
    sabotage.refresh(damaged)
    assert name in verify_fails(damaged, models)


def test_an_expert_fewer(damaged, models):
    """The file itself is at odds with the manifest."""
    sabotage.change_shard(damaged, 1, "down", lambda tensor: tensor[:3])
    assert "experts-00001-of-00002.safetensors" in verify_fails(damaged, models)


def test_one_flipped_bit_that_the_digests_cover(damaged, models):
    def flip(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(torch.int32)[3, 5, 7] ^= 1
        return tensor

    name = sabotage.change_shard(damaged, 1, "gate_up", flip)
    sabotage.refresh(damaged)
    assert name in verify_fails(damaged, models)


def test_a_router_weight_changed(damaged, models):
    router = next(name for name, _ in torch.jit.load(models[PLAIN.model]).named_parameters() if name.endswith("gate.weight"))

    def change(model: torch.jit.ScriptModule) -> None:
        dict(model.named_parameters())[router][0, 0] += 1e-3

    sabotage.change_model(damaged, change)
    sabotage.refresh(damaged)
    assert router in verify_fails(damaged, models)


def test_another_placement_table(damaged, models):
    attribute = manifest.read(damaged)["layers"][0]["placement_attr"]
    sabotage.change_model(damaged, lambda model: dict(model.named_buffers())[attribute].copy_(torch.zeros(8, 1, 2)))
    sabotage.refresh(damaged)
    assert "placement table" in verify_fails(damaged, models)


# Damage that only the numbers show.


@pytest.mark.parametrize("words", [[], ["--blocks"]], ids=["whole", "blocks"])
def test_another_activation_names_the_first_layer_that_differs(words, damaged, models):
    last = manifest.read(damaged)["layers"][1]
    sabotage.change_model(damaged, lambda model: sabotage.set_activation(model, last["block"], "gelu_gated"))
    sabotage.refresh(damaged)
    sentence = verify_fails(damaged, models, *words)
    assert f"the first layer that differs is {last['path']}" in sentence


# run


def test_run_gives_what_eager_gives(models, conversions, tmp_path):
    output = tmp_path / "out.safetensors"
    outcome = tool.succeed("run", conversions[PLAIN], "--inputs", models.inputs(PLAIN.model, "3x7"), "-o", output)
    assert outcome.last_line.startswith("autoep: OK run 2 ranks, 1 output")
    found, expected = load_file(output)["output.0"], load_file(models.outputs(PLAIN.model, "3x7"))["output.0"]
    assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_run_with_inputs_and_outputs_of_each_rank(models, conversions, tmp_path):
    for rank, shape in enumerate(["2x12", "1x1"]):
        shutil.copy(models.inputs(PLAIN.model, shape), tmp_path / f"in-{rank}")
    tool.succeed("run", conversions[PLAIN], "--inputs", tmp_path / "in-{rank}", "-o", tmp_path / "out-{rank}", "--ep-size", 2)
    for rank, shape in enumerate(["2x12", "1x1"]):
        found, expected = load_file(tmp_path / f"out-{rank}")["output.0"], load_file(models.outputs(PLAIN.model, shape))["output.0"]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_run_refuses(models, conversions, tmp_path):
    inputs, output = models.inputs(PLAIN.model, "1x1"), tmp_path / "out"
    assert "2 ranks" in tool.fails(2, "run", conversions[PLAIN], "--inputs", inputs, "-o", output, "--ep-size", 4)
    tool.fails(3, "run", conversions[PLAIN], "--inputs", tmp_path / "none", "-o", output)
    output.write_text("mine")
    tool.fails(7, "run", conversions[PLAIN], "--inputs", inputs, "-o", output)
    assert output.read_text() == "mine"


def test_run_names_the_rank_whose_tokens_the_model_cannot_take(models, conversions, tmp_path):
    for rank, ids in enumerate([torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 1 << 40)]):
        save_file(load_file(models.inputs(PLAIN.model, "1x1")) | {"input_ids": ids}, tmp_path / f"in-{rank}")
    sentence = tool.fails(8, "run", conversions[PLAIN], "--inputs", tmp_path / "in-{rank}", "-o", tmp_path / "out", TMPDIR=str(tmp_path))
    assert sentence.startswith("rank 1: ")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("autoep-*"))


def test_an_interrupt_leaves_nothing(models, conversions, tmp_path):
    words = [tool.cli_path(), "verify", conversions[PLAIN], "--source", models[PLAIN.model]]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(words, env=tool.environment(TMPDIR=str(tmp_path / "tmp")), stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "tmp").glob("autoep-*")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert tool.listing(tmp_path / "tmp") == {}

# SPDX-License-Identifier: Apache-2.0
"""autoep.load in one process: what comes back, and the sentence for every reason not to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import autoep
import python_sample as sample


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    autoep.load_library()


def test_one_rank_needs_no_group(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep1", 1)
    model = autoep.load(tmp_path / "ep1")
    x = torch.randn(7, sample.HIDDEN)
    torch.testing.assert_close(model(x), sample.reference(model, x), rtol=1e-4, atol=1e-4)


def test_frozen_models_have_their_parameters_on_the_root(tmp_path: Path) -> None:
    sample.write(tmp_path / "plain", 1)
    sample.write(tmp_path / "frozen", 1, frozen=True)
    x = torch.randn(5, sample.HIDDEN)
    plain, frozen = autoep.load(tmp_path / "plain"), autoep.load(tmp_path / "frozen")
    torch.testing.assert_close(frozen(x), plain.block(x))


def test_each_rank_gets_its_experts(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep2", 2)
    whole = sample.experts()
    for rank in range(2):
        block = autoep.load(tmp_path / "ep2", rank=rank).block
        assert torch.equal(block.autoep_gate_up, whole["gate_up"].chunk(2)[rank])
        assert torch.equal(block.autoep_down, whole["down"].chunk(2)[rank])
        assert block.autoep_group == ""


def test_only_the_ranks_shard_is_read(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep2", 2)
    (tmp_path / "ep2" / "experts-00001-of-00002.safetensors").unlink()
    autoep.load(tmp_path / "ep2", rank=0)


def test_gradients_are_as_in_the_manifest(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep1", 1)
    model = autoep.load(tmp_path / "ep1")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == {
        "block.gate.weight": True,
        "block.autoep_gate_up": False,
        "block.autoep_down": True,
    }


def test_trainable_models_learn(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep1", 1)
    model = autoep.load(tmp_path / "ep1", trainable=True)
    parameters = dict(model.named_parameters())
    assert len(parameters) == 3 and all(parameter.requires_grad for parameter in parameters.values())
    x, target = torch.randn(16, sample.HIDDEN), torch.randn(16, sample.HIDDEN)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), target)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_per_rank_files_load_either_way(tmp_path: Path) -> None:
    sample.write(tmp_path / "each", 1, layout="per-rank")
    x = torch.randn(3, sample.HIDDEN)
    plain = torch.jit.load(str(tmp_path / "each" / "rank-00000-of-00001.pt"))
    torch.testing.assert_close(plain(x), sample.reference(plain, x), rtol=1e-4, atol=1e-4)
    assert torch.equal(autoep.load(tmp_path / "each")(x), plain(x))


def test_without_a_shard_the_model_says_so(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep1", 1)
    model = torch.jit.load(str(tmp_path / "ep1" / "model.pt"))
    with pytest.raises(RuntimeError, match="no shard attached"):
        model(torch.randn(3, sample.HIDDEN))


def test_missing_library_is_an_unknown_op(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep1", 1)
    code = f"import torch; torch.jit.load({str(tmp_path / 'ep1' / 'model.pt')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "Unknown builtin op: autoep::dispatch" in run.stderr


def _other_abi(directory: Path, facts: dict) -> None:
    facts["op_abi"] = 2
    sample.write_manifest(directory, facts)


def _other_plan(directory: Path, facts: dict) -> None:
    facts["plan"] = "other"
    sample.write_manifest(directory, facts)


def _other_version(directory: Path, facts: dict) -> None:
    facts["version"] = 2
    sample.write_manifest(directory, facts)


def _no_shard(directory: Path, facts: dict) -> None:
    (directory / "experts-00000-of-00002.safetensors").unlink()


def _short_shard(directory: Path, facts: dict) -> None:
    path = directory / "experts-00000-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _no_manifest(directory: Path, facts: dict) -> None:
    (directory / "autoep.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_other_abi, "for op ABI 2, and this libautoep has op ABI 1: load it with the libautoep of that version"),
        (_other_plan, "the directory mixes files of two conversions; copy one of them whole"),
        (_other_version, "version is 2, and this build of autoep reads 1: use the autoep that wrote it"),
        (_no_shard, "experts-00000-of-00002.safetensors: No such file or directory: copy it"),
        (_short_shard, "the copy is incomplete or belongs to another conversion"),
        (_no_manifest, "a directory that autoep convert wrote has this file"),
    ],
)
def test_damaged_directories_are_refused(tmp_path: Path, damage, sentence: str) -> None:
    facts = sample.write(tmp_path / "ep2", 2)
    damage(tmp_path / "ep2", facts)
    with pytest.raises(RuntimeError) as error:
        autoep.load(tmp_path / "ep2", rank=0)
    assert str(error.value).startswith("autoep: ") and sentence in str(error.value)


def test_group_or_rank_is_needed(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep2", 2)
    with pytest.raises(ValueError, match="a model of EP size 2 needs a process group"):
        autoep.load(tmp_path / "ep2")
    with pytest.raises(ValueError, match="no process group is registered under the name 'tp'"):
        autoep.load(tmp_path / "ep2", group="tp")
    with pytest.raises(RuntimeError, match="was converted for ranks 0 to 1, and rank 2 was asked for"):
        autoep.load(tmp_path / "ep2", rank=2)


def test_a_world_that_blocks_do_not_fill_is_refused(tmp_path: Path) -> None:
    sample.write(tmp_path / "ep2", 2)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        with pytest.raises(ValueError, match="a world of 3 ranks cannot be divided into EP groups of 2: start a multiple of 2"):
            autoep.load(tmp_path / "ep2")
    finally:
        dist.destroy_process_group()

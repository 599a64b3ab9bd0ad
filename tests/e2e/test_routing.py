# SPDX-License-Identifier: Apache-2.0
# Edge routing: a rank without tokens, all tokens to one expert, top_k equal to the number of experts, one expert a rank, tokens
# that choose themselves.
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from e2e import compare, launch, tool
from models import families, transformers5
from models.spec import Built


@dataclass
class Block:
    eager: torch.nn.Module
    path: Path


def save_block(folder: Path, change=lambda block: None, **config) -> Block:
    built = transformers5.block("mixtral", "grouped_mm", torch.float32, **config)
    change(built.module)
    return trace_block(built, (2, 12), folder)


def trace_block(built: Built, example: tuple[int, int], folder: Path, change=lambda block: None) -> Block:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(built.module, tuple(built.make_inputs(*example, 1).values()))
        change(built.module)  # the trace has the same tensors
        traced.save(str(folder / "block.pt"))
    return Block(built.module, folder / "block.pt")


def check(block: Block, rows: list[torch.Tensor], folder: Path) -> None:
    """Converts for len(rows) ranks; rank r gets rows[r] and must answer as the eager block does."""
    ep_size = len(rows)
    tool.succeed("convert", block.path, "--ep-size", ep_size, "-o", folder / "out")
    files = []
    for rank, x in enumerate(rows):
        files.append(folder / f"rank{rank}.safetensors")
        save_file({"hidden_states": x}, files[rank])
    done = launch.launch([launch.Job("edge", folder / "out", [files])], ep_size, folder / "ranks")
    for rank, x in enumerate(rows):
        found = done.outputs("edge", 0, rank)["output.0"]
        if x.numel() == 0:
            assert found.shape == x.shape
            continue
        with torch.no_grad():
            compare.check_close(found, block.eager(x), f"rank {rank}")


def tokens(batch: int, length: int, seed: int) -> torch.Tensor:
    return transformers5.hidden_states(torch.float32)(batch, length, seed)["hidden_states"]


def prefer(experts: list[int]):
    """A router whose choice is decided by channel 0, which the tests set: these experts always win."""

    def change(block: torch.nn.Module) -> None:
        block.gate.weight.data[:, 0] = -50.0
        block.gate.weight.data[experts, 0] = 50.0

    return change


def with_channel(x: torch.Tensor) -> torch.Tensor:
    x[..., 0] = 1.0
    return x


def test_a_rank_without_tokens(tmp_path):
    check(save_block(tmp_path), [tokens(2, 5, 1), tokens(1, 0, 2)], tmp_path)


def test_all_tokens_to_experts_of_one_rank(tmp_path):
    """The other rank's experts get no row, and its tokens all leave it."""
    block = save_block(tmp_path, prefer([0, 1]))
    check(block, [with_channel(tokens(2, 5, 1)), with_channel(tokens(3, 4, 2))], tmp_path)


def test_all_tokens_to_one_expert(tmp_path):
    block = save_block(tmp_path, prefer([5]), num_experts_per_tok=1)
    check(block, [with_channel(tokens(2, 5, 1)), with_channel(tokens(1, 1, 2))], tmp_path)


@pytest.mark.parametrize("ep_size", [1, 2])
def test_every_token_to_every_expert(tmp_path, ep_size):
    block = save_block(tmp_path, num_experts_per_tok=transformers5.EXPERTS)
    check(block, [tokens(2, 3 + rank, rank) for rank in range(ep_size)], tmp_path)


def test_one_expert_a_rank(tmp_path):
    block = save_block(tmp_path, num_local_experts=4)
    check(block, [tokens(1, 1 + rank, rank) for rank in range(4)], tmp_path)


@pytest.mark.parametrize("identity", [[8], [8, 9]], ids=["among_others", "alone"])
def test_a_token_that_chooses_itself_meets_no_expert_that_it_did_not_choose(identity, tmp_path):
    """LongCat-Flash's experts 8 and 9 answer the token. 0 times an answer that is no number would be none."""

    def change(block: torch.nn.Module) -> None:
        block.experts.down_proj.data[[0, 1]] = torch.inf
        block.router.e_score_correction_bias[[0, 1]] = -10.0
        block.router.e_score_correction_bias[identity] = 10.0

    built = families.block("longcat_flash", 5, None, (4, 64))
    built.module.router.top_k = 2
    check(trace_block(built, (4, 64), tmp_path, change), [tokens(2, 5, 1), tokens(3, 4, 2)], tmp_path)

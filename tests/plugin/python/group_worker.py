# SPDX-License-Identifier: Apache-2.0
"""One rank of the group tests: python group_worker.py CASE RANK WORLD STORE DIRECTORY."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import autoep
import python_sample as sample


def _check(model: torch.nn.Module) -> None:
    """Each rank has its own tokens, and one has none."""
    rank = dist.get_rank()
    x = torch.randn(3 * rank, sample.HIDDEN, generator=torch.Generator().manual_seed(rank))
    torch.testing.assert_close(model(x), sample.reference(model, x), rtol=1e-4, atol=1e-4)


def _refused(text: str, call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"not refused: {text}")


def two(directory: Path) -> None:
    """A world of the EP size needs no group, and gets none of its own."""
    rank = dist.get_rank()
    model = autoep.load(directory / "ep2")
    assert torch.equal(model.block.autoep_down, sample.experts()["down"].chunk(2)[rank])
    _check(model)
    _check(autoep.load(directory / "ep2", rank=rank))
    _check(autoep.load(directory / "each2"))
    _check(torch.jit.load(str(directory / "each2" / f"rank-0000{rank}-of-00002.pt")))
    _refused(f"this process is rank {rank} of the EP group", lambda: autoep.load(directory / "ep2", rank=1 - rank))
    one = autoep.load(directory / "ep1")
    assert one.block.autoep_group == ""
    _check(one)


def four(directory: Path) -> None:
    """A multiple of the EP size is divided into blocks of consecutive ranks, once."""
    rank = dist.get_rank()
    model = autoep.load(directory / "ep2")
    assert torch.equal(model.block.autoep_down, sample.experts()["down"].chunk(2)[rank % 2])
    _check(model)
    assert autoep.load(directory / "ep2").block.autoep_group == model.block.autoep_group
    _check(autoep.load(directory / "ep4"))

    group = autoep.new_ep_group(2)
    assert dist.get_process_group_ranks(group) == [rank // 2 * 2, rank // 2 * 2 + 1]
    assert dist.get_process_group_ranks(autoep.new_edp_group(2)) == [rank % 2, rank % 2 + 2]
    _check(autoep.load(directory / "ep2", group=group))
    _check(autoep.load(directory / "ep2", group=group.group_name))

    _refused("cannot be divided into EP groups of 3", lambda: autoep.new_ep_group(3))
    _refused("the group has 4 ranks, and the model was converted for 2", lambda: autoep.load(directory / "ep2", group=dist.group.WORLD))
    _refused("the group has 2 ranks, and the model was converted for 4", lambda: autoep.load(directory / "ep4", group=group))
    first = dist.new_group([0, 1])
    if rank >= 2:
        _refused("not a member of the group", lambda: autoep.load(directory / "ep2", group=first))


def main() -> None:
    case, rank, world, store, directory = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world))
    {"two": two, "four": four}[case](Path(directory))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

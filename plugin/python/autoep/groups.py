# SPDX-License-Identifier: Apache-2.0
"""Process groups of expert parallelism, laid out as AutoEP does: EP groups are blocks of consecutive ranks, and an EDP
group joins the ranks that hold the same experts, one of each block."""

from __future__ import annotations

import torch.distributed as dist

# The EP groups that ep_group made, for the default group that they were made of.
_made: list[tuple[dist.ProcessGroup, int, dist.ProcessGroup]] = []


def check_world(world: int, ep_size: int) -> None:
    """Raises ValueError unless blocks of ep_size ranks fill the world."""
    if ep_size < 1 or world % ep_size != 0:
        sizes = ", ".join(str(size) for size in range(1, world + 1) if world % size == 0)
        raise ValueError(
            f"autoep: a world of {world} ranks cannot be divided into EP groups of {ep_size}: start a multiple of {ep_size} "
            f"processes, pass the EP group, or use an EP size of {sizes}"
        )


def _new_groups(tables: list[list[int]]) -> dist.ProcessGroup:
    """Creates every group, in the same order on all ranks as torch wants it; returns the one that holds this rank."""
    groups = [(table, dist.new_group(table)) for table in tables]
    return next(group for table, group in groups if dist.get_rank() in table)


def new_ep_group(ep_size: int) -> dist.ProcessGroup:
    """This rank's EP group: consecutive ranks. Every rank of the world must call it."""
    world = dist.get_world_size()
    check_world(world, ep_size)
    return _new_groups([list(range(begin, begin + ep_size)) for begin in range(0, world, ep_size)])


def new_edp_group(ep_size: int) -> dist.ProcessGroup:
    """This rank's EDP group: the ranks with the same experts, ep_size apart. Every rank of the world must call it."""
    world = dist.get_world_size()
    check_world(world, ep_size)
    return _new_groups([list(range(first, world, ep_size)) for first in range(ep_size)])


def ep_group(ep_size: int) -> dist.ProcessGroup:
    """The default group where it has ep_size ranks, else this rank's block, made once and then kept."""
    default = dist.group.WORLD
    if dist.get_world_size() == ep_size:
        return default
    for world, size, group in _made:
        if world is default and size == ep_size:
            return group
    group = new_ep_group(ep_size)
    _made.append((default, ep_size, group))
    return group

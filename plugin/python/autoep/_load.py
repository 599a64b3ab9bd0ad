# SPDX-License-Identifier: Apache-2.0
"""autoep.load: the C++ loader checks and reads; here are the process group and the assignments."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import torch
import torch.distributed as dist

from autoep import groups
from autoep._library import load_library


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _resolve(group: dist.ProcessGroup | str) -> dist.ProcessGroup:
    if not isinstance(group, str):
        return group
    try:
        return dist.distributed_c10d._resolve_process_group(group)
    except Exception as error:
        raise ValueError(f"autoep: no process group is registered under the name '{group}': pass the group itself") from error


def _find_group(ep_size: int, group: dist.ProcessGroup | str | None, rank: int | None) -> dist.ProcessGroup | None:
    """The EP group; None where the model needs none yet."""
    if group is not None:
        return _resolve(group)
    if ep_size == 1:
        return None
    if _distributed() and (rank is None or dist.get_world_size() % ep_size == 0):
        return groups.ep_group(ep_size)
    if rank is None:
        raise ValueError(
            f"autoep: a model of EP size {ep_size} needs a process group: call torch.distributed.init_process_group in each of "
            f"{ep_size} processes first, or pass group or rank"
        )
    return None


def _check_member(ep_size: int, group: dist.ProcessGroup, rank: int | None) -> int:
    """This process's rank in the EP group."""
    size, member = dist.get_world_size(group), dist.get_rank(group)
    if member < 0:
        raise ValueError("autoep: this process is not a member of the group: pass the EP group that holds this rank")
    if size != ep_size:
        raise ValueError(f"autoep: the group has {size} ranks, and the model was converted for {ep_size}: pass a group of {ep_size}")
    if rank is not None and rank != member:
        raise ValueError(f"autoep: rank {rank} was asked for, and this process is rank {member} of the EP group: leave rank out")
    return member


def _assign(model: torch.nn.Module, path: str, value: Any) -> None:
    *blocks, name = path.split(".")
    setattr(functools.reduce(getattr, blocks, model), name, value)


def load(
    directory: str | os.PathLike[str],
    group: dist.ProcessGroup | str | None = None,
    rank: int | None = None,
    device: torch.device | str | None = None,
    trainable: bool = False,
) -> torch.jit.ScriptModule:
    """Loads a directory that `autoep convert` wrote, with this rank's experts in place.

    group: the EP process group or its name. By default the world where it has the model's EP size, else, where it is a
        multiple, this rank's block of consecutive ranks; then every rank of the world must call load.
    rank: the rank in the EP group, which is also the shard's number; by default the group's.
    device: where the model goes; by default the CPU.
    trainable: every floating-point parameter requires a gradient. Else they do as they did in the source; a trace has none
        that does.
    Raises ValueError for a group or rank that does not fit, RuntimeError for a directory that cannot be loaded.
    """
    load_library()
    directory = os.fspath(directory)
    manifest = json.loads(torch.ops.autoep.read_manifest(directory))
    ep_size = manifest["ep_size"]
    ep_group = _find_group(ep_size, group, rank)
    ep_rank = _check_member(ep_size, ep_group, rank) if ep_group is not None else rank or 0

    shard = torch.ops.autoep.load_shard(directory, ep_rank)
    name = "model.pt" if manifest["layout"] == "shared" else f"rank-{ep_rank:05}-of-{ep_size:05}.pt"
    device = torch.device(device or "cpu")
    model = torch.jit.load(os.path.join(directory, name), map_location=device)
    for layer in manifest["layers"]:
        _assign(model, layer["group_attr"], ep_group.group_name if ep_group is not None else "")
        for tensor in layer["tensors"] if shard else []:
            value = torch.nn.Parameter(shard[tensor["param"]].to(device), requires_grad=tensor["requires_grad"])
            _assign(model, tensor["param"], value)
    if trainable:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
    return model

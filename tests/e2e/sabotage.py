# SPDX-License-Identifier: Apache-2.0
# Damages a copy of a converted directory, and makes its manifest agree with the damage, so that only what looks deeper than
# digests can notice.
import functools
import hashlib
import json
from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file, save_file

from e2e import manifest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refresh(directory: Path) -> None:
    """Sizes and digests of the manifest, as the files are now."""
    described = manifest.read(directory)
    for listed in described["files"]:
        data = (directory / listed["file"]).read_bytes()
        listed["bytes"], listed["sha256"] = len(data), _digest(data)
    shards = [load_file(path) for path in sorted(directory.glob("experts-*.safetensors"))]
    for tensor in manifest.tensors(described):
        for piece in tensor["pieces"] if shards else []:
            held = shards[piece["rank"]][tensor["param"]]
            piece["sha256"] = _digest(held.contiguous().view(torch.uint8).numpy().tobytes())
    (directory / "autoep.json").write_text(json.dumps(described))


def change_shard(directory: Path, rank: int, role: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Changes the first layer's tensor of that role; returns its name."""
    described = manifest.read(directory)
    name = next(tensor["param"] for tensor in manifest.tensors(described) if tensor["role"] == role)
    path = directory / f"experts-{rank:05d}-of-{described['ep_size']:05d}.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path)
    return name


def flip_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def change_model(directory: Path, change: Callable[[torch.jit.ScriptModule], None]) -> None:
    """Loads model.pt, changes it in place, and saves it with its copy of the manifest."""
    import autoep

    autoep.load_library()
    extra = {"autoep.json": ""}
    model = torch.jit.load(directory / "model.pt", _extra_files=extra)
    with torch.no_grad():
        change(model)
    model.save(str(directory / "model.pt"), _extra_files=extra)


def set_activation(model: torch.jit.ScriptModule, path: str, activation: str) -> None:
    """Writes another activation into the block's graph."""
    graph = functools.reduce(getattr, path.split("."), model).graph
    node = graph.findNode("autoep::experts")
    constant = graph.insertConstant(activation)
    constant.node().moveBefore(node)
    names = [str(value.node().s("value")) if value.node().kind() == "prim::Constant" and value.type().str() == "str" else "" for value in node.inputs()]
    node.replaceInput(next(i for i, name in enumerate(names) if name.endswith("_gated")), constant)

# SPDX-License-Identifier: Apache-2.0
"""A converted directory made by hand, without the converter: scripted blocks that run the EP ops, shards by the safetensors
package, and a manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 6, 5, 4, 2
PARAMS = {"gate_up": (2 * INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}


class Block(torch.nn.Module):
    """The block as the rewrite leaves it: a router, the ops, placeholders for the experts."""

    def __init__(self, ep_size: int, experts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.autoep_group = ""
        self.ep_size = ep_size
        slots = EXPERTS // ep_size
        table = [[[expert // slots, expert % slots]] for expert in range(EXPERTS)]
        self.register_buffer("autoep_placement", torch.tensor(table))
        for role in PARAMS:
            self.register_parameter(f"autoep_{role}", torch.nn.Parameter(experts[role], requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.softmax(self.gate(x), -1).topk(2, -1)
        rows, offsets, counts, order, received = torch.ops.autoep.dispatch(
            x, ids, None, self.autoep_placement, self.ep_size, self.autoep_group, "block#plan", 1
        )
        rows = torch.ops.autoep.experts(
            rows, offsets, self.autoep_gate_up, self.autoep_down, None, None, "silu_gated", [], "block#plan", 1
        )
        return torch.ops.autoep.combine(
            rows, weights, order, counts, received, self.autoep_placement, self.ep_size, self.autoep_group, "block#plan", 1
        )


class Model(torch.nn.Module):
    def __init__(self, ep_size: int, experts: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.block = Block(ep_size, experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


def experts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {role: torch.randn(EXPERTS, *shape, generator=generator) for role, shape in PARAMS.items()}


def reference(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the model must compute, token by token. Takes the router of a loaded model."""
    weights, ids = torch.softmax(model.block.gate(x), -1).topk(TOP_K, -1)
    whole = experts()
    out = x.clone()
    for token in range(x.shape[0]):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (whole["gate_up"][expert] @ x[token]).chunk(2)
            out[token] += weight * (whole["down"][expert] @ (torch.nn.functional.silu(gate) * up))
    return out


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tensor(role: str, prefix: str, whole: torch.Tensor, ep_size: int, requires_grad: bool) -> dict[str, Any]:
    pieces = [
        {"rank": rank, "shape": list(piece.shape), "bytes": piece.nbytes, "sha256": _sha256(piece.numpy().tobytes())}
        for rank, piece in enumerate(whole.chunk(ep_size))
    ]
    part = {
        "tensor": f"experts.{role}",
        "expert_begin": 0,
        "expert_count": EXPERTS,
        "row_begin": 0,
        "row_count": whole.shape[1],
        "source_row_begin": 0,
        "source_row_step": 1,
        "transposed": False,
    }
    return {
        "role": role,
        "param": f"{prefix}autoep_{role}",
        "dtype": "F32",
        "shape": list(whole.shape),
        "requires_grad": requires_grad,
        "source": [part],
        "pieces": pieces,
    }


def manifest(ep_size: int, layout: str, prefix: str) -> dict[str, Any]:
    slots = EXPERTS // ep_size
    whole = experts()
    layer = {
        "path": "block",
        "block": "block",
        "label": "block#plan",
        "family": "mixtral",
        "form": "expert_loop",
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "hidden": HIDDEN,
        "intermediate": INTERMEDIATE,
        "activation": "silu_gated",
        "activation_args": [],
        "weights_act": "after",
        "group_attr": f"{prefix}autoep_group",
        "placement_attr": f"{prefix}autoep_placement",
        "placement": [{"rank": expert // slots, "slot": expert % slots} for expert in range(EXPERTS)],
        "router": {},
        "shared_experts": [],
        "rebuilt": "",
        "tensors": [_tensor(role, prefix, whole[role], ep_size, role == "down") for role in PARAMS],
    }
    return {
        "version": 1,
        "op_abi": 1,
        "tool": "autoep 0.1.0",
        "torch": "2.11.0",
        "layout": layout,
        "ep_size": ep_size,
        "plan": "plan",
        "source": {"digest": "0" * 64, "bytes": 1},
        "files": [],
        "layers": [layer],
        "limits": [],
    }


def _script(ep_size: int, weights: dict[str, torch.Tensor], frozen: bool) -> torch.jit.ScriptModule:
    torch.manual_seed(9)
    if not frozen:
        return torch.jit.script(Model(ep_size, weights))
    kept = ["autoep_group", *(f"autoep_{role}" for role in PARAMS)]
    return torch.jit.freeze(torch.jit.script(Block(ep_size, weights)).eval(), preserved_attrs=kept)


def write(directory: Path, ep_size: int, layout: str = "shared", frozen: bool = False) -> dict[str, Any]:
    """Writes the directory and returns its manifest. A frozen one is the block alone, its parameters on the root."""
    directory.mkdir(parents=True)
    prefix = "" if frozen else "block."
    facts = manifest(ep_size, layout, prefix)
    whole = experts()
    extra = {"autoep.json": json.dumps(facts)}
    for rank in range(ep_size):
        pieces = {role: whole[role].chunk(ep_size)[rank].contiguous() for role in PARAMS}
        if layout == "shared":
            shard = {f"{prefix}autoep_{role}": piece for role, piece in pieces.items()}
            save_file(shard, directory / f"experts-{rank:05}-of-{ep_size:05}.safetensors")
        else:
            _script(ep_size, pieces, frozen).save(str(directory / f"rank-{rank:05}-of-{ep_size:05}.pt"), _extra_files=extra)
    if layout == "shared":
        empty = {role: torch.empty(0, *shape) for role, shape in PARAMS.items()}
        _script(ep_size, empty, frozen).save(str(directory / "model.pt"), _extra_files=extra)
    write_manifest(directory, facts)
    return facts


def write_manifest(directory: Path, facts: dict[str, Any]) -> None:
    """Lists the directory's files as they are now, and writes autoep.json."""
    paths = sorted(path for path in directory.iterdir() if path.name != "autoep.json")
    facts["files"] = [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path.read_bytes())} for path in paths
    ]
    (directory / "autoep.json").write_text(json.dumps(facts))

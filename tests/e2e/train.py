# SPDX-License-Identifier: Apache-2.0
# Trains a converted directory as one rank: python -m e2e.train DIRECTORY RANK WORLD STORE OUT STEPS. Writes the losses.
# Replicated parameters' gradients are summed over the ranks; an expert's come whole from dispatch's backward.
import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

import autoep
from e2e import manifest

BATCH, LENGTH = 2, 16  # of a rank
LEARNING_RATE = 0.3


def tokens(step: int, rank: int, vocabulary: int) -> torch.Tensor:
    """Sequences that count up by a stride of their own: there is something to learn."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    start = torch.randint(vocabulary, (BATCH, 1), generator=generator)
    stride = torch.randint(1, 4, (BATCH, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH)) % vocabulary


def loss_of(model, ids: torch.Tensor, world: int) -> torch.Tensor:
    """The rank's share of the mean loss over the tokens of all ranks."""
    answer = model(ids)
    logits = answer[0] if isinstance(answer, tuple) else answer
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()) / world


def train(model, steps: int, rank: int, world: int, sharded: set[str]) -> list[float]:
    model.train(False)
    parameters = dict(model.named_parameters())
    vocabulary = max(p.shape[0] for name, p in parameters.items() if "embed" in name)
    optimizer = torch.optim.SGD(parameters.values(), lr=LEARNING_RATE)
    losses = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model, tokens(step, rank, vocabulary), world)
        loss.backward()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
            for name, parameter in parameters.items():
                if name not in sharded:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    dist.all_reduce(parameter.grad)
        optimizer.step()
        losses.append(total.item())
    return losses


def main() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    directory, rank, world, store, out, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6], int(sys.argv[6])
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    model = autoep.load(directory, trainable=True)
    sharded = {tensor["param"] for tensor in manifest.tensors(manifest.read(directory))}
    losses = train(model, steps, rank, world, sharded)
    (Path(out) / f"losses.{rank}.json").write_text(json.dumps(losses))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

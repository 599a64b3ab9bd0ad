# SPDX-License-Identifier: Apache-2.0
# One rank of a list of jobs, in a process of its own: python -m e2e.rank JOBS.json RANK WORLD STORE OUT DEVICE
# DEVICE is cpu, over Gloo, or cuda, over NCCL and with a GPU of its own.
# A job loads a converted directory once and runs it on this rank's input files; with "gradients" it also trains one step.
import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import autoep
from models import build

warnings.filterwarnings("ignore", category=DeprecationWarning)


def load(job: dict, rank: int, world: int, device: torch.device) -> torch.nn.Module:
    if job.get("plain"):  # the per-rank layout needs the library and nothing else of ours
        autoep.load_library()
        return torch.jit.load(str(Path(job["directory"]) / f"rank-{rank:05}-of-{world:05}.pt"), map_location=device)
    return autoep.load(job["directory"], device=device, trainable=job.get("gradients", False))


def outputs_of(answer) -> dict[str, torch.Tensor]:
    return {f"output.{i}": tensor for i, tensor in enumerate(build.flat(answer))}


def loss_of(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss whose gradient differs for every element, the same in every process."""
    total: torch.Tensor | float = 0.0
    for tensor in outputs.values():
        pattern = torch.linspace(-1, 1, steps=max(tensor.numel(), 1))[: tensor.numel()].reshape(tensor.shape)
        total = total + (tensor.float() * pattern.to(tensor.device)).sum()
    return total


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter; zero where no token reached it."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for name, p in model.named_parameters()}


def run(job: dict, rank: int, world: int, out: Path, device: torch.device) -> None:
    model = load(job, rank, world, device)
    gradients = job.get("gradients", False)
    for step, files in enumerate(job["inputs"]):
        inputs = load_file(files[rank], device=str(device))
        with torch.set_grad_enabled(gradients):
            outputs = outputs_of(model(**inputs))
        if gradients:
            loss_of(outputs).backward()
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in outputs.items()}
        save_file(found, out / f"{job['name']}.step{step}.rank{rank}.safetensors")
    if gradients:
        save_file({name: gradient.cpu() for name, gradient in gradients_of(model).items()}, out / f"{job['name']}.gradients.rank{rank}.safetensors")


def main() -> None:
    jobs_file, rank, world, store, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    torch.set_num_threads(1)
    device = torch.device(sys.argv[6], rank) if sys.argv[6] == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    for job in json.loads(Path(jobs_file).read_text()):
        try:
            run(job, rank, world, out, device)
        except Exception as error:
            (out / f"{job['name']}.error.rank{rank}").write_text(f"{type(error).__name__}: {error}")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

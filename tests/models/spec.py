# SPDX-License-Identifier: Apache-2.0
# What a model of the registry consists of, and the process-wide choice of a transformers version.
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
from torch import nn

Inputs = dict[str, torch.Tensor]


@dataclass
class Built:
    """An eager model, the example to trace it with, and the shapes to record references for."""

    module: nn.Module
    make_inputs: Callable[[int, int, int], Inputs]  # batch, length, seed -> inputs by argument name
    example: tuple[int, int] = (2, 12)  # batch >= 2: with 1 the trace would be right for a batch of 1 only
    shapes: list[tuple[int, int]] = field(default_factory=lambda: [(2, 12), (3, 7), (1, 1), (2, 33)])
    script: bool = False  # torch.jit.script instead of trace


@dataclass
class Spec:
    """One name of the registry. `transformers` is its major version, or None where it is not needed."""

    summary: str
    build: Callable[[], Built]
    transformers: int | None = None
    freeze: bool = False
    checked: bool = True  # a file that is wrong for other inputs than its example is refused


def use_transformers(major: int) -> None:
    """Makes `import transformers` mean this major version. Each lives in a folder of its own beside the one torch."""
    folder = Path(sys.prefix) / f"transformers{major}"
    if not (folder / "transformers").is_dir():
        raise SystemExit(f"transformers {major} is not in {folder}: run tools/dev build, which installs it")
    loaded = sys.modules.get("transformers")
    if loaded is not None and not loaded.__version__.startswith(f"{major}."):
        raise RuntimeError(f"transformers {loaded.__version__} is loaded already: models of {major} need a process of their own")
    if loaded is None:
        sys.path.insert(0, str(folder))
        import transformers

        transformers.logging.set_verbosity_error()


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights whose routing is decided and whose experts matter: transformers' own initial 0.02 makes MoE outputs vanish."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            scale = parameter.shape[-1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=generator).mul_(scale).to(parameter.dtype)
        elif "norm" in name:
            parameter.data = torch.rand(parameter.shape, generator=generator).add_(0.5).to(parameter.dtype)
    return module

# SPDX-License-Identifier: Apache-2.0
"""A language model of published dimensions, cut to some layers: made by transformers, traced on the CPU, converted for one rank,
loaded on the GPU, and compared there with transformers' own on the same weights:

    cd tests && python -m bench.lm --model qwen3-30b --layers 8 --cli autoep --work FOLDER --json lm.json
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.moe.card import median_us
from models.spec import use_transformers
from models.transformers5 import Logits

import autoep

TRACED = (2, 16)
RUNS = {"prefill": (2, 1024), "one token": (1, 1), "one token, batch 32": (32, 1)}
NEAR = 2e-2  # of a token's largest logit
DTYPE = torch.bfloat16


def _transformers():
    try:
        import transformers
    except ModuleNotFoundError:  # the project's own, in a folder of its own
        use_transformers(5)
        import transformers
    return transformers


def _mixtral(layers: int):
    library = _transformers()
    fields = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    more = {"num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": layers}
    return library.MixtralForCausalLM, library.MixtralConfig(**fields, **more)


def _qwen3(layers: int):
    library = _transformers()
    fields = {"vocab_size": 151936, "hidden_size": 2048, "moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4}
    more = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "num_hidden_layers": layers}
    return library.Qwen3MoeForCausalLM, library.Qwen3MoeConfig(**fields, **more)


MODELS = {"mixtral-8x7b": _mixtral, "qwen3-30b": _qwen3}


def make(name: str, layers: int) -> torch.nn.Module:
    """On the GPU, where random weights are quickly made."""
    model_class, config = MODELS[name](layers)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    with torch.device("cuda"):
        return model_class._from_config(config, dtype=DTYPE).eval()


def tokens(shape: tuple[int, int], vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1)).cuda()


def measure(model: Callable, vocabulary: int, repeats: int) -> tuple[dict, dict]:
    """Times and peaks of memory, and the logits on the CPU."""
    times, logits = {"weights_bytes": torch.cuda.memory_allocated()}, {}
    for name, shape in RUNS.items():
        ids = tokens(shape, vocabulary)
        torch.cuda.reset_peak_memory_stats()
        logits[name] = model(ids).float().cpu()
        peak = torch.cuda.max_memory_allocated() - times["weights_bytes"]
        us = median_us(lambda: model(ids), repeats)  # noqa: B023
        times[name] = {"us": us, "tokens_a_second": ids.numel() / (us * 1e-6), "peak_bytes": peak}
    return times, logits


def apart(one: torch.Tensor, other: torch.Tensor) -> dict:
    """Largest difference of each token's logits, in units of that token's largest."""
    error = ((one - other).abs().amax(-1) / other.abs().amax(-1)).flatten()
    return {"median": error.median().item(), "max": error.max().item(), "near": (error <= NEAR).double().mean().item()}


def timed(found: dict, what: str, call: Callable):
    begin = time.perf_counter()
    result = call()
    found["seconds"][what] = round(time.perf_counter() - begin, 1)
    print(f"{what}: {found['seconds'][what]} s", flush=True)
    return result


def in_fp32(model: torch.nn.Module, vocabulary: int) -> dict:
    """The logits of the same weights in fp32, of a copy: cast back, the rotary tables would be bf16."""
    wide = Logits(copy.deepcopy(model).float())
    return {name: wide(tokens(shape, vocabulary)).cpu() for name, shape in RUNS.items()}


def trace(model: torch.nn.Module, vocabulary: int, target: Path) -> None:
    example = tokens(TRACED, vocabulary).cpu()
    with torch.no_grad():
        torch.jit.trace(Logits(model.cpu()).eval(), example, check_trace=False).save(str(target))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.lm", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--cli", default="autoep", help="the autoep command")
    parser.add_argument("--library", help="libautoep.so; by default as autoep.load_library finds it")
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and its conversion")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    autoep.load_library(options.library)
    torch.set_grad_enabled(False)
    source, converted = options.work / f"{options.model}.pt", options.work / options.model
    found = {"model": options.model, "layers": options.layers, "card": torch.cuda.get_device_name(), "torch": torch.__version__, "seconds": {}}

    model = timed(found, "make", lambda: make(options.model, options.layers))
    vocabulary = model.config.vocab_size
    found["transformers"], expected = timed(found, "run transformers' own", lambda: measure(Logits(model), vocabulary, options.repeats))
    reference = timed(found, "run in fp32", lambda: in_fp32(model, vocabulary))
    timed(found, "trace and save", lambda: trace(model, vocabulary, source))
    del model
    torch.cuda.empty_cache()
    timed(found, "convert", lambda: subprocess.run([options.cli, "convert", source, "--ep-size", "1", "-o", converted], check=True))
    loaded = timed(found, "load", lambda: autoep.load(str(converted), device="cuda").eval())
    found["autoep"], logits = timed(found, "run ours", lambda: measure(loaded, vocabulary, options.repeats))
    pairs = {"ours and transformers'": (logits, expected), "ours and fp32": (logits, reference), "transformers' and fp32": (expected, reference)}
    found["apart"] = {what: {name: apart(one[name], other[name]) for name in RUNS} for what, (one, other) in pairs.items()}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

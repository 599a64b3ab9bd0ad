# SPDX-License-Identifier: Apache-2.0
# The names of all test models. A name says what it is: family and transformers version, experts form, scope, dtype.
from functools import partial

import torch

from models import loops, markers, transformers4, transformers5
from models.families import family_models
from models.spec import Spec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _add_transformers5(models: dict[str, Spec]) -> None:
    for family in ("mixtral", "qwen3moe"):
        for experts in ("grouped", "batched"):
            for kind, dtype in _DTYPES.items():
                for scope, make in (("lm", transformers5.lm), ("block", transformers5.block)):
                    name = f"{family}5_{experts}_{scope}_{kind}"
                    build = partial(make, family, f"{experts}_mm", dtype)
                    summary = f"{family} of transformers 5, {experts}_mm, {scope}, {kind}"
                    models[name] = Spec(summary, build, 5)
                    models[f"{name}_frozen"] = Spec(f"{summary}, frozen", build, 5, freeze=True)
            build = partial(transformers5.guarded_lm, family, f"{experts}_mm", torch.float32)
            models[f"{family}5_{experts}_guarded_lm"] = Spec(f"{family} language model whose experts guard their ids", build, 5)
            build = partial(transformers5.block, family, f"{experts}_mm", torch.float32, with_logits=True)
            models[f"{family}5_{experts}_block_logits"] = Spec(f"{family} block returning its router logits", build, 5)
            build = partial(markers.block5, family, f"{experts}_mm")
            models[f"{family}5_{experts}_marker"] = Spec(f"{family} block whose expert i answers i", build, 5)


def _add_transformers4(models: dict[str, Spec]) -> None:
    for style in loops.STYLES:
        for script in (False, True):
            if style in (loops.TRACE_ONLY if script else loops.SCRIPT_ONLY):
                continue
            how = "script" if script else "trace"
            name = f"mixtral4_{style}_{how}"
            summary = f"Mixtral of transformers 4, MoE loop {style}, {'scripted' if script else 'traced'}"
            for kind, dtype in _DTYPES.items():
                build = partial(transformers4.block, style, dtype, script)
                models[f"{name}_block_{kind}"] = Spec(f"{summary}, alone, {kind}", build, 4)
                build = partial(transformers4.lm, style, dtype, script)
                models[f"{name}_lm_{kind}"] = Spec(f"{summary}, in the traced LM, {kind}", build, 4)
            build = partial(transformers4.block, style, torch.float32, script, with_logits=True)
            models[f"{name}_block_logits"] = Spec(f"{summary}, returning its router logits", build, 4)
            models[f"{name}_marker"] = Spec(f"{summary}, expert i answers i", partial(markers.block4, style, script), 4)


def registry() -> dict[str, Spec]:
    models: dict[str, Spec] = {}
    _add_transformers5(models)
    _add_transformers4(models)
    return models | family_models()

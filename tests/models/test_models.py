# SPDX-License-Identifier: Apache-2.0
# The test models themselves: hand-written loops give what transformers' own block gives, markers mark, and a trace that is
# right only for its example is refused.
from pathlib import Path

import pytest
import torch

from models import build, loops, markers, transformers4, transformers5
from models.spec import Spec

_HALF = transformers5.HIDDEN // 2


@pytest.fixture(scope="module")
def block():
    return transformers4.causal_lm(torch.float32).model.layers[0].block_sparse_moe


def _rows(batch: int, length: int) -> torch.Tensor:
    return transformers5.hidden_states(torch.float32)(batch, length, 7)["hidden_states"]


@pytest.mark.parametrize("style", loops.STYLES)
@pytest.mark.parametrize("shape", [(3, 11), (1, 1)])
def test_loop_is_the_block_of_transformers(block, style, shape):
    x = _rows(*shape)
    with torch.no_grad():
        expected, expected_logits = block(x.clone())
        answer, logits = loops.make(style, block, with_logits=True)(x)
        torch.testing.assert_close(answer, expected)
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(loops.make(style, block)(x), expected)


@pytest.mark.parametrize("style", ["dense_mask", "sparse_stacked"])
def test_marker_shows_each_tokens_experts_and_weights(style):
    built = markers.block4(style, script=False)
    x = built.make_inputs(2, 9, 3)["hidden_states"]
    with torch.no_grad():
        out = built.module(x).flatten(0, 1)
        weights, ids = built.module.route(built.module.gate(x.flatten(0, 1)))
    shown = torch.zeros(18, transformers5.EXPERTS).scatter(1, ids, weights)
    assert torch.equal(out[:, _HALF : _HALF + transformers5.EXPERTS], shown)
    torch.testing.assert_close(out[:, :1], (weights * ids).sum(-1, keepdim=True))


def test_a_baked_trace_is_refused(tmp_path: Path):
    built = transformers4.block("sparse_if", torch.float32, script=False)
    built.example = (1, 1)  # of one token, most experts are skipped for ever
    model = build.to_torchscript(built, Spec("", lambda: built))
    with pytest.raises(AssertionError, match="baked at 2x12"):
        build.save_references(built, model, tmp_path, "baked")

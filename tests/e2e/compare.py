# SPDX-License-Identifier: Apache-2.0
# How far two outputs may be apart.
import torch

FP32_LIMIT = 2e-4  # of the largest output
HALF_LIMIT = 2e-2
FLIPPED_SHARE = 0.05  # of the tokens, in half precision: a near tie may be decided the other way
SPREAD_SHARE = 0.25  # with the tokens behind them in their sequences, which see them through attention


def token_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The largest difference of each token, relative to the largest output. The last dimension is a token's row."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{found.dtype} instead of {expected.dtype}"
    if expected.numel() == 0:
        return torch.zeros(0)
    difference = (found.double() - expected.double()).abs().reshape(-1, found.shape[-1]).amax(-1)
    return difference / expected.double().abs().max()


def check_close(found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected), f"{where}: other numbers"
        return
    errors = token_errors(found, expected)
    if expected.dtype == torch.float32:
        worst = errors.max().item() if errors.numel() else 0.0
        assert worst <= FP32_LIMIT, f"{where}: {worst:.2e} of the largest output"
        return
    far = ~(errors <= HALF_LIMIT)
    # One flip shows in every later token of its sequence: the first of a sequence counts as a flip.
    flips = far.reshape(-1, expected.shape[-2]).any(-1).sum().item() if expected.dim() == 3 else far.sum().item()
    within = flips <= FLIPPED_SHARE * errors.numel() and far.sum().item() <= SPREAD_SHARE * errors.numel()
    assert within, f"{where}: {far.sum()} of {errors.numel()} tokens are farther than {HALF_LIMIT} of the largest output"


def check_outputs(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str) -> None:
    assert found.keys() == expected.keys(), where
    for name, tensor in expected.items():
        check_close(found[name], tensor, f"{where} {name}")

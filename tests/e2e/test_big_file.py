# SPDX-License-Identifier: Apache-2.0
# A block whose tensors have more than 2^31 elements and whose file is beyond 4 GiB: offsets, sizes and CRCs in 64 bits.
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn

from e2e import manifest, tool

EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 18, 4096, 15360, 2  # gate_up: 18 * 30720 * 4096 = 2.26e9 elements


class Block(nn.Module):
    """Mixtral's router and a grouped_mm of stacked experts; weights repeat, so that making them takes no minutes."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False, dtype=torch.bfloat16)
        self.gate_up_proj = nn.Parameter(self.weights(2 * INTERMEDIATE, HIDDEN))
        self.down_proj = nn.Parameter(self.weights(HIDDEN, INTERMEDIATE))

    @staticmethod
    def weights(rows: int, columns: int) -> torch.Tensor:
        one = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(torch.bfloat16) * 0.02
        return torch.stack([one.roll(e, 0) for e in range(EXPERTS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(self.gate(x).float().softmax(-1), TOP_K)
        order = ids.flatten().argsort()
        offsets = torch.bincount(ids.flatten(), minlength=EXPERTS).cumsum(0).to(torch.int32)
        rows = x[order // TOP_K]
        gate, up = torch._grouped_mm(rows, self.gate_up_proj.transpose(1, 2), offs=offsets).chunk(2, -1)
        out = torch._grouped_mm(nn.functional.silu(gate) * up, self.down_proj.transpose(1, 2), offs=offsets)
        out = (out * weights.flatten()[order].unsqueeze(-1)).to(x.dtype)
        return torch.zeros_like(x).index_add_(0, order // TOP_K, out)


@pytest.mark.full
def test_a_file_beyond_4_gib_converts(tmp_path):
    assert shutil.disk_usage(tmp_path).free > 25 << 30, "this test needs 25 GiB of disk"
    source = tmp_path / "big.pt"
    with torch.no_grad():
        model = Block().eval()
        x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        torch.jit.trace(model, x, check_trace=False).save(str(source))
    assert source.stat().st_size > 4 << 30
    assert model.gate_up_proj.numel() > 1 << 31

    directory = tmp_path / "out"
    tool.succeed("convert", source, "--ep-size", 2, "-o", directory, timeout=1200)
    for tensor in manifest.tensors(manifest.read(directory)):
        expected = model.gate_up_proj if tensor["role"] == "gate_up" else model.down_proj
        for rank in range(2):
            with safe_open(directory / f"experts-{rank:05}-of-00002.safetensors", "pt") as shard:
                stored = shard.get_slice(tensor["param"])
                for expert in (0, EXPERTS // 2 - 1):
                    assert torch.equal(stored[expert : expert + 1][0], expected[rank * (EXPERTS // 2) + expert])
    tool.succeed("verify", directory, "--source", source, "--blocks", timeout=1800)

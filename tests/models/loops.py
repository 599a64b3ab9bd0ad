# SPDX-License-Identifier: Apache-2.0
# Hand-written loops over experts, in the styles that people write to get a TorchScript file that is right for every input.
# Dense styles run every expert on every token; sparse ones gather the tokens of an expert first.
import torch
import torch.nn.functional as F
from torch import nn


class Expert(nn.Module):
    """silu(w1 x) * (w3 x) -> w2, Mixtral's names."""

    def __init__(self, w1: nn.Linear, w2: nn.Linear, w3: nn.Linear):
        super().__init__()
        self.w1, self.w2, self.w3 = w1, w2, w3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Loop(nn.Module):
    """What the styles share: Mixtral's router and E experts of three Linears. A style is a `run`."""

    num_experts: int
    top_k: int

    def __init__(self, block: nn.Module):
        super().__init__()
        self.num_experts = block.num_experts
        self.top_k = block.top_k
        self.gate = block.gate
        self.experts = nn.ModuleList([Expert(e.w1, e.w2, e.w3) for e in block.experts])

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = F.softmax(logits, dim=1, dtype=torch.float)
        weights, ids = torch.topk(probabilities, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(logits.dtype), ids

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Tokens [T, H], weights and ids [T, k] -> [T, H]."""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, ids = self.route(self.gate(x))
        return self.run(x, weights, ids).view(hidden_states.shape)

    @torch.jit.unused
    def set_expert(self, i: int, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> None:
        expert = self.experts[i]
        expert.w1.weight.data, expert.w2.weight.data, expert.w3.weight.data = w1, w2, w3


class ReturnsLogits(Loop):
    """The signature of transformers 4's block, which returns its router's logits too."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = hidden_states.view(-1, hidden_states.shape[-1])
        logits = self.gate(x)
        weights, ids = self.route(logits)
        return self.run(x, weights, ids).reshape(hidden_states.shape), logits


class DenseMask(Loop):
    """out += expert(x) * (w * (ids == i)).sum(-1)"""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (weights * (ids == i)).sum(-1)
            out = out + expert(x) * share.unsqueeze(-1)
        return out


class DenseScatter(Loop):
    """full = zeros.scatter(1, ids, w); out += expert(x) * full[:, i:i+1]"""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype, device=x.device).scatter(1, ids, weights)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + expert(x) * full[:, i : i + 1]
        return out


class DenseOneHot(Loop):
    """The weights of all experts from one_hot; outputs stacked, then one weighted sum."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = (F.one_hot(ids, self.num_experts).to(x.dtype) * weights.unsqueeze(-1)).sum(1)
        outputs = []
        for expert in self.experts:
            outputs.append(expert(x))
        return (torch.stack(outputs, 1) * full.unsqueeze(-1)).sum(1)


class SparseWhere(Loop):
    """token, slot = where(ids == i); out.index_add_(0, token, expert(x[token]) * w[token, slot])"""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(ids == i)
            out.index_add_(0, token, expert(x[token]) * weights[token, slot].unsqueeze(-1))
        return out


class SparseIf(Loop):
    """As SparseWhere, experts without a token skipped."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            found = torch.where(ids == i)
            token = found[0]
            if token.numel() > 0:
                out.index_add_(0, token, expert(x[token]) * weights[token, found[1], None])
        return out


class SparseOneHot(Loop):
    """mask = one_hot(ids).permute(2, 1, 0); slot, token = where(mask[i]): the loop of transformers 4, without its hit list."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros((x.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
        mask = F.one_hot(ids, num_classes=self.num_experts).permute(2, 1, 0)
        for i, expert in enumerate(self.experts):
            slot, token = torch.where(mask[i])
            rows = x[None, token].reshape(-1, x.shape[1])
            out.index_add_(0, token, (expert(rows) * weights[token, slot, None]).to(x.dtype))
        return out


class SparseNonzero(Loop):
    """token = (ids == i).any(-1).nonzero(); out[token] += expert(x[token]) * share[token]"""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = ids == i
            token = chosen.any(dim=-1).nonzero().squeeze(-1)
            share = (weights * chosen).sum(dim=-1, keepdim=True)
            out[token] += expert(x[token]) * share[token]
        return out


class Stacked(Loop):
    """Experts in three stacked parameters, one slice an expert."""

    def __init__(self, block: nn.Module):
        super().__init__(block)
        for name in ("w1", "w2", "w3"):
            weights = [getattr(expert, name).weight.data for expert in self.experts]
            setattr(self, name, nn.Parameter(torch.stack(weights)))
        del self.experts

    def expert(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.silu(F.linear(x, self.w1[i])) * F.linear(x, self.w3[i]), self.w2[i])

    def set_expert(self, i: int, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> None:
        self.w1.data[i], self.w2.data[i], self.w3.data[i] = w1, w2, w3


class DenseStacked(Stacked):
    """As DenseScatter, with stacked parameters."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype, device=x.device).scatter(1, ids, weights)
        out = torch.zeros_like(x)
        for i in range(self.num_experts):
            out = out + self.expert(i, x) * full[:, i : i + 1]
        return out


class SparseStacked(Stacked):
    """As SparseWhere, with stacked parameters."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for i in range(self.num_experts):
            token, slot = torch.where(ids == i)
            out.index_add_(0, token, self.expert(i, x[token]) * weights[token, slot].unsqueeze(-1))
        return out


class DenseRenorm(DenseScatter):
    """As DenseScatter, but what divides the weights is their sum over all experts."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype, device=x.device).scatter(1, ids, weights)
        full = full / full.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + expert(x) * full[:, i : i + 1]
        return out


class DenseEinsum(Stacked):
    """Every expert on every token, in one product each with the stacked parameters."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype, device=x.device).scatter(1, ids, weights)
        h = F.silu(torch.einsum("th,eih->tei", x, self.w1)) * torch.einsum("th,eih->tei", x, self.w3)
        return (torch.einsum("tei,ehi->teh", h, self.w2) * full.unsqueeze(-1)).sum(1)


class DenseBmm(Stacked):
    """As DenseEinsum, experts first."""

    def run(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        full = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype, device=x.device).scatter(1, ids, weights)
        rows = x.unsqueeze(0).expand(self.num_experts, -1, -1)
        h = F.silu(torch.bmm(rows, self.w1.transpose(1, 2))) * torch.bmm(rows, self.w3.transpose(1, 2))
        return (torch.bmm(h, self.w2.transpose(1, 2)) * full.t().unsqueeze(-1)).sum(0)


STYLES = {
    "dense_mask": DenseMask,
    "dense_scatter": DenseScatter,
    "dense_onehot": DenseOneHot,
    "sparse_where": SparseWhere,
    "sparse_if": SparseIf,
    "sparse_onehot": SparseOneHot,
    "sparse_nonzero": SparseNonzero,
    "dense_stacked": DenseStacked,
    "sparse_stacked": SparseStacked,
    "dense_renorm": DenseRenorm,
    "dense_einsum": DenseEinsum,
    "dense_bmm": DenseBmm,
}

# A trace would bake the branch of the one, and the size of the other's indexed assignment.
SCRIPT_ONLY = {"sparse_if", "sparse_nonzero"}

# range(E) scripts to a prim::Loop over experts, a form of its own.
TRACE_ONLY = {"dense_stacked", "sparse_stacked"}


def make(style: str, block: nn.Module, with_logits: bool = False) -> Loop:
    """The loop of this style over the router and experts of a transformers 4 Mixtral block, in eval mode."""
    loop = STYLES[style]
    if with_logits:
        loop = type(f"{loop.__name__}WithLogits", (ReturnsLogits, loop), {})
    return loop(block).eval()

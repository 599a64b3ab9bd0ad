// SPDX-License-Identifier: Apache-2.0
// TorchScript sources of small MoE blocks.
#include "tests/passes/detect/blocks.h"

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "passes/detect/ir.h"

namespace autoep::testing {
namespace {

constexpr char kRoute[] = R"(
def forward(self, hidden: Tensor) -> Tensor:
    x = hidden.reshape(-1, hidden.size(-1))
    logits = torch.linear(x, self.gate)
    scores = torch.softmax(logits, -1)
    w, ids = torch.topk(scores, 2, -1)
    w = w / w.sum(-1, True)
)";

}  // namespace

std::string GroupedMmSource() {
  return std::string(kRoute) + R"(
    flat = ids.reshape(-1)
    ordered, perm = torch.sort(flat)
    rows = x[torch.floor_divide(perm, ids.size(-1))]
    counts = torch.histc(ordered.to(6), 6, 0, 5)
    offsets = torch.cumsum(counts, 0, dtype=3)
    both = torch._grouped_mm(rows, self.gate_up.transpose(-2, -1), offsets)
    gate, up = torch.chunk(both, 2, -1)
    h = torch.silu(gate) * up
    y = torch._grouped_mm(h, self.down.transpose(-2, -1), offsets)
    y = y * w.reshape(-1)[perm].unsqueeze(-1)
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.size(0))
    out = y[inverse].view(x.size(0), ids.size(-1), x.size(-1)).sum(1)
    return out.view_as(hidden)
)";
}

std::string GroupedOfFirstLogits() {
  const std::string source = Replace(GroupedMmSource(), "self.gate)", "self.flat_w1)");
  return Replace(source, "torch.topk(scores,", "torch.topk(scores[:, :6],");
}

std::string BatchedMmSource() {
  return std::string(kRoute) + R"(
    flat = ids.reshape(-1)
    rows = torch.repeat_interleave(x, ids.size(-1), 0)
    both = torch.bmm(self.gate_up[flat], rows.unsqueeze(-1)).squeeze(-1)
    gate, up = torch.chunk(both, 2, -1)
    h = torch.silu(gate) * up
    y = torch.bmm(self.down[flat], h.unsqueeze(-1)).squeeze(-1)
    y = y * w.reshape(-1).unsqueeze(-1)
    out = y.view(x.size(0), ids.size(-1), x.size(-1)).sum(1)
    return out.view_as(hidden)
)";
}

std::string LoopSource(const std::string& expert) {
  std::string source = std::string(kRoute) + "    out = torch.zeros_like(x)\n";
  for (int64_t e = 0; e < kExperts; ++e) {
    for (const char c : expert) source += c == '#' ? std::to_string(e) : std::string(1, c);
  }
  return source + "    return out.view_as(hidden)\n";
}

std::string SparseExpert() {
  return R"(
    found = torch.where(ids == #)
    rows = x[found[0]]
    h = torch.silu(torch.linear(rows, self.w1_#)) * torch.linear(rows, self.w3_#)
    y = torch.linear(h, self.w2_#)
    out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))
)";
}

std::string ConditionalExpert() {
  return R"(
    found = torch.where(ids == #)
    if found[0].numel() > 0:
        rows = x[found[0]]
        h = torch.silu(torch.linear(rows, self.w1_#)) * torch.linear(rows, self.w3_#)
        y = torch.linear(h, self.w2_#)
        out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))
)";
}

std::string DenseExpert() {
  return R"(
    h = torch.silu(torch.linear(x, self.w1_#)) * torch.linear(x, self.w3_#)
    y = torch.linear(h, self.w2_#)
    out = out + y * (w * (ids == #)).sum(-1, True)
)";
}

torch::jit::Module MakeBlock(const std::string& source) {
  torch::jit::Module block("__torch__.tests.Block");
  block.register_parameter("gate", at::zeros({kExperts, kHidden}), false);
  block.register_parameter("gate_up", at::zeros({kExperts, 2 * kWidth, kHidden}), false);
  block.register_parameter("down", at::zeros({kExperts, kHidden, kWidth}), false);
  block.register_parameter("gate_up_bias", at::zeros({kExperts, 2 * kWidth}), false);
  block.register_parameter("down_bias", at::zeros({kExperts, kHidden}), false);
  for (const char* name : {"flat_w1", "flat_w3", "flat_w2"}) {
    block.register_parameter(name, at::zeros({kExperts * kWidth, kHidden}), false);
  }
  for (int64_t e = 0; e < kExperts; ++e) {
    const std::string number = std::to_string(e);
    block.register_parameter("w1_" + number, at::zeros({kWidth, kHidden}), false);
    block.register_parameter("w3_" + number, at::zeros({kWidth, kHidden}), false);
    block.register_parameter("w2_" + number, at::zeros({kHidden, kWidth}), false);
    block.register_parameter("b2_" + number, at::zeros({kHidden}), false);
  }
  block.define(source);
  return block;
}

Matched Match(const torch::jit::Module& block) {
  Matched matched;
  matched.graph = block.get_method("forward").graph()->copy();
  PrepareBlockGraph(matched.graph);
  matched.outcome = MatchBlocks(matched.graph, block, "block");
  return matched;
}

void PrintTo(const NearMiss& miss, std::ostream* out) { *out << miss.name; }

void ExpectNearMiss(const NearMiss& miss) {
  ASSERT_EQ(Match(MakeBlock(miss.source)).outcome.matches.size(), 1u) << "the block itself must match";
  const Matched matched = Match(MakeBlock(Replace(miss.source, miss.from, miss.to)));
  EXPECT_TRUE(matched.outcome.matches.empty());
  std::vector<Miss> reasons = matched.outcome.refusals;
  reasons.insert(reasons.end(), matched.outcome.unmet.begin(), matched.outcome.unmet.end());
  ASSERT_EQ(reasons.size(), miss.predicate.empty() ? 0u : 1u);
  if (reasons.empty()) return;
  EXPECT_THAT(reasons[0].predicate, ::testing::HasSubstr(miss.predicate));
  EXPECT_EQ(reasons[0].path, "block");
  EXPECT_FALSE(Describe(reasons[0]).node.empty());
}

}  // namespace autoep::testing

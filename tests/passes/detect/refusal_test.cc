// SPDX-License-Identifier: Apache-2.0
// Near misses: one line of a block changed so that it no longer is the experts' weighted sum, or not one that may be taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

// Hits of the first expert, and no more than so many.
std::string AtMost(const std::string& count) { return "[hits[:(" + count + ")] for hits in torch.where(ids == 0)]"; }

std::vector<NearMiss> NearMisses() {
  const std::string unknown = "must reach experts of a known form";
  const std::string own = "answered by a feed-forward of its own";
  const std::string differs = "the sum is not that of the chosen experts";
  const std::string untried = "may be a limit that no trial reaches";
  const std::string grouped = GroupedMmSource(), batched = BatchedMmSource();
  const std::string sparse = LoopSource(SparseExpert()), dense = LoopSource(DenseExpert());
  const std::string conditional = LoopSource(ConditionalExpert());
  return {
      {"GroupedOtherActivation", grouped, "torch.silu(gate)", "torch.tanh(gate)", unknown},
      {"GroupedExtraOp", grouped, "torch.silu(gate) * up", "torch.silu(gate) * up * 2.0", unknown},
      {"GroupedNotGated", grouped, "torch.silu(gate) * up", "torch.silu(gate) * gate", unknown},
      {"GroupedWrongInverse", grouped, "y[inverse]", "y[perm]", differs},
      {"GroupedUnpermutedWeights", grouped, "w.reshape(-1)[perm]", "w.reshape(-1)", differs},
      {"GroupedOtherTokens", grouped, "torch.floor_divide(perm, ids.size(-1))", "torch.remainder(perm, x.size(0))", differs},
      {"GroupedTooFewExperts", grouped, "torch.histc(ordered.to(6), 6, 0, 5)", "torch.histc(ordered.to(6), 5, 0, 4)",
       "must run on made-up tokens"},
      {"GroupedOfALogitTooMany", GroupedOfFirstLogits(), "scores[:, :6]", "scores[:, :7]", "the last group does not end with the rows"},
      {"BatchedOtherIds", batched, "self.down[flat]", "self.down[flat.flip([0])]", unknown},
      {"BatchedShiftedWeights", batched, "w.reshape(-1).unsqueeze", "w.t().reshape(-1).unsqueeze", differs},
      {"BatchedMean", batched, ".sum(1)", ".mean(1)", "moves rows, compares, or combines linearly"},
      {"SparseMissingExpert", sparse, "out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))", "pass",
       "baked: the graph holds 5 of the router's 6 experts"},
      {"SparseTwoExpertsOneWeight", sparse, "self.w2_3", "self.w2_2", "used twice"},
      {"SparseOtherSlot", sparse, "w[found[0], found[1]]", "w[found[0], 1 - found[1]]", own},
      {"SparseWrongChoice", sparse, "ids == 4", "ids == 3", own},
      {"SparseDropsTokens", sparse, "torch.where(ids == 0)", "torch.where((ids == 0) & (w > 0.01))", differs},
      // Limits on tokens that are no constants of the file.
      {"LimitOfAProduct", sparse, "torch.where(ids == 0)", AtMost("x.size(-1) * 60"), differs},
      {"LimitOfASum", sparse, "torch.where(ids == 0)", AtMost("int(x.size(0) * 0.5) + 700"), differs},
      {"LimitOfAQuotient", sparse, "torch.where(ids == 0)", AtMost("x.size(0) - x.size(0) // 20 // 30"), differs},
      {"LimitOfRounding", sparse, "torch.where(ids == 0)", AtMost("x.size(0) - int(x.size(0) * 0.002)"), differs},
      {"LimitOfALesser", sparse, "torch.where(ids == 0)", AtMost("min(x.size(0), x.size(-1) * 50)"), differs},
      {"LimitOfRows", sparse, "torch.where(ids == 0)", AtMost("x.size(0) - max(hidden.size(0) - x.size(-1) * 40, 0)"), differs},
      {"LimitPastAnyTrial", sparse, "torch.where(ids == 0)", AtMost("x.size(-1) * 2000"), untried},
      {"LimitMetByOneNumber", sparse, "torch.where(ids == 0)", AtMost("0 if x.size(0) == x.size(-1) * 10 else x.size(0)"), untried},
      {"LimitOfWeights", sparse, "torch.where(ids == 0)", "torch.where((ids == 0) & (w < 40.0))", untried},
      {"LimitOfATable", sparse, "torch.where(ids == 0)",
       "torch.where((ids == 0) & (torch.arange(x.size(-1) * 60)[:x.size(0)] >= 0).unsqueeze(-1))",
       "must work for every number of tokens"},
      {"LimitOfASmallType", grouped, "torch.histc(ordered.to(6), 6, 0, 5)", "torch.histc(ordered.to(6), 6, 0, 5).to(1)",
       "must work for every number"},
      {"LimitOfSmallCounts", grouped, "torch.histc(ordered.to(6), 6, 0, 5)", "torch.one_hot(flat, 6).to(1).sum(0, dtype=1)",
       "must work for every number"},
      {"LimitOfBits", sparse, "torch.where(ids == 0)", AtMost("x.size(0) - (x.size(0) & 512)"), "of the bits of numbers"},
      {"SparseUsedElsewhere", sparse, "return out.view_as(hidden)", "return out.view_as(hidden) + h.sum()",
       "used by their sum alone"},
      {"SparseOutputUsedElsewhere", sparse, "return out.view_as(hidden)", "return out.view_as(hidden) + y.sum()", own},
      {"SparseChangedInPlace", sparse, "y = torch.linear(h, self.w2_0)", "h.add_(1.0)\n    y = torch.linear(h, self.w2_0)",
       unknown},
      {"SparseRowsChangedInPlace", sparse, "h = torch.silu(torch.linear(rows, self.w1_0))",
       "g = torch.linear(rows, self.w1_0)\n    rows.mul_(2.0)\n    h = torch.silu(g)", unknown},
      {"SparseWeightOnInput", sparse, "torch.linear(rows, self.w1_0)", "torch.linear(rows * 2.0, self.w1_0)",
       "must reach experts of a known form"},
      {"SparseBakedTokens", sparse, "torch.zeros_like(x)", "torch.zeros(24, 16)", "must run on made-up tokens"},
      {"ConditionalNeverTaken", conditional, "found[0].numel() > 0", "found[0].numel() > 3", "a feed-forward of its own"},
      {"DenseScaledShare", dense, "(w * (ids == 2))", "(w * (ids == 2) * 2)", own},
      {"DenseSquaredShare", dense, "(w * (ids == 2))", "(w * w * (ids == 2))", differs},
      {"DenseOneExpertTwice", dense, "(ids == 5)", "(ids == 4)", own},
      {"DenseOutsideInput", dense, "torch.zeros_like(x)", "torch.cos(x)", "moves rows, compares"},
  };
}

class Refused : public ::testing::TestWithParam<NearMiss> {};

TEST_P(Refused, WithTheReason) { ExpectNearMiss(GetParam()); }

INSTANTIATE_TEST_SUITE_P(All, Refused, ::testing::ValuesIn(NearMisses()), [](const auto& info) { return info.param.name; });

TEST(Refusal, OneDtypeInALayer) {
  torch::jit::Module block = MakeBlock(LoopSource(SparseExpert()));
  block.setattr("w2_3", block.attr("w2_3").toTensor().to(at::kDouble));
  const Matched matched = Match(block);
  EXPECT_TRUE(matched.outcome.matches.empty());
  ASSERT_EQ(matched.outcome.refusals.size(), 1u);
}

TEST(Refusal, OneRequiresGradInALayer) {
  torch::jit::Module block = MakeBlock(BatchedMmSource());
  block.attr("gate_up").toTensor().set_requires_grad(true);
  const Matched matched = Match(block);
  ASSERT_EQ(matched.outcome.refusals.size(), 1u);
  EXPECT_THAT(matched.outcome.refusals[0].predicate, ::testing::HasSubstr("one requires_grad; block.gate_up differs"));
}

TEST(Refusal, BakedHitsAreNamed) {
  std::string source = Replace(LoopSource(""), "    return", R"(
    hits = torch.unbind(torch.nonzero(torch.bincount(ids.reshape(-1), None, 6)))
    a, b = hits
    for e in [a, b]:
        found = torch.where(ids == e)
        y = torch.linear(torch.silu(torch.linear(x[found[0]], self.w1_0)) * torch.linear(x[found[0]], self.w3_0), self.w2_0)
        out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))
    return)");
  const Matched matched = Match(MakeBlock(source));
  EXPECT_TRUE(matched.outcome.matches.empty());
  ASSERT_EQ(matched.outcome.refusals.size(), 1u);
  EXPECT_THAT(matched.outcome.refusals[0].predicate, ::testing::StartsWith("baked: the trace holds the experts"));
}

TEST(Refusal, MissingExpertsAreBaked) {
  std::string expert = SparseExpert(), source = LoopSource("");
  for (const char* number : {"0", "1", "2", "4", "5"}) {
    std::string turn;
    for (const char c : expert) turn += c == '#' ? std::string(number) : std::string(1, c);
    source = Replace(source, "    return", turn + "    return");
  }
  const Matched matched = Match(MakeBlock(source));
  EXPECT_TRUE(matched.outcome.matches.empty());
  ASSERT_EQ(matched.outcome.refusals.size(), 1u);
  EXPECT_THAT(matched.outcome.refusals[0].predicate, ::testing::HasSubstr("baked: the graph holds 5 of the router's 6 experts"));
}

}  // namespace
}  // namespace autoep::testing

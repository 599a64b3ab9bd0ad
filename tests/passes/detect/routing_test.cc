// SPDX-License-Identifier: Apache-2.0
// Routers that are no top-k with weights of its own, weights on the input, and experts in other layouts; each with near misses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "passes/detect/detect.h"
#include "passes/detect/ir.h"
#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

constexpr char kHead[] = R"(
def forward(self, hidden: Tensor) -> Tensor:
    x = hidden.reshape(-1, hidden.size(-1))
    logits = torch.linear(x, self.gate)
    scores = torch.softmax(logits, -1)
)";

constexpr char kTail[] = "\n    return out.view_as(hidden)\n";

std::string ForEachExpert(const std::string& turn) {
  std::string turns;
  for (int64_t e = 0; e < kExperts; ++e) {
    for (const char c : turn) turns += c == '#' ? std::to_string(e) : std::string(1, c);
  }
  return turns;
}

constexpr char kExpert[] = R"(
    y = torch.linear(torch.silu(torch.linear(x, self.w1_#)) * torch.linear(x, self.w3_#), self.w2_#))";

// A table of weights, divided by its sum over all experts.
std::string Table() {
  return std::string(kHead) + R"(
    top, ids = torch.topk(scores, 2, -1)
    full = torch.zeros_like(scores).scatter(1, ids, top)
    full = full / full.sum(-1, True)
    out = torch.zeros_like(x))" +
         ForEachExpert(std::string(kExpert) + "\n    out = out + y * full[:, #:#+1]") + kTail;
}

// The best expert, as long as it has room, times its probability.
std::string Capacity() {
  return std::string(kHead) + R"(
    one = torch.one_hot(torch.argmax(scores, -1), 6)
    mask = (one * (torch.cumsum(one, 0) <= 4)).to(11)
    best, where = torch.max(scores, -1)
    out = torch.zeros_like(x))" +
         ForEachExpert(R"(
    rows = x[mask[:, #]]
    out[mask[:, #]] = torch.linear(torch.silu(torch.linear(rows, self.w1_#)) * torch.linear(rows, self.w3_#), self.w2_#))") +
         "\n    out = best.unsqueeze(-1) * out" + kTail;
}

// The best expert and the best of the others, as long as each has room; the second choices come behind all first ones.
std::string TopTwoCapacity() {
  return std::string(kHead) + R"(
    one = torch.one_hot(torch.argmax(scores, -1), 6)
    two = torch.one_hot(torch.argmax(scores.masked_fill(one.to(11), float("-inf")), -1), 6)
    kept_one = one * (torch.cumsum(one, 0) - 1 < 4)
    kept_two = two * (torch.cumsum(two, 0) - 1 + one.sum(0, True) < 4)
    full = scores * kept_one + scores * kept_two
    out = torch.zeros_like(x))" +
         ForEachExpert(std::string(kExpert) + "\n    out = out + y * full[:, #:#+1]") + kTail;
}

// The best expert, then the best of the others.
std::string TwoMaxima() {
  return std::string(kHead) + R"(
    first, a = torch.max(scores, -1, True)
    second, b = torch.max(scores.scatter(-1, a, float("-inf")), -1, True)
    w = torch.cat([first, second], -1)
    ids = torch.cat([a, b], -1)
    flat = ids.reshape(-1)
    rows = torch.repeat_interleave(x, ids.size(-1), 0)
    both = torch.bmm(self.gate_up[flat], rows.unsqueeze(-1)).squeeze(-1)
    g, up = torch.chunk(both, 2, -1)
    y = torch.bmm(self.down[flat], (torch.silu(g) * up).unsqueeze(-1)).squeeze(-1)
    y = y * w.reshape(-1).unsqueeze(-1)
    out = y.view(x.size(0), ids.size(-1), x.size(-1)).sum(1))" +
         kTail;
}

// llama4: every expert on every token, the weight on its input.
std::string WeightedInput() {
  return std::string(kHead) + R"(
    top, ids = torch.topk(logits, 2, -1)
    full = torch.sigmoid(torch.full_like(logits, float("-inf")).scatter_(1, ids, top))
    rows = x.repeat([6, 1]) * full.transpose(0, 1).reshape(-1, 1)
    both = torch.bmm(rows.view(6, -1, 16), self.gate_up.transpose(1, 2))
    g, up = torch.chunk(both, 2, -1)
    y = torch.bmm(up * torch.silu(g), self.down.transpose(1, 2))
    out = y.reshape(6, -1, 16).sum(0))" +
         kTail;
}

std::string Einsum() {
  return std::string(kHead) + R"(
    top, ids = torch.topk(scores, 2, -1)
    full = torch.zeros([x.size(0), 6]).scatter(1, ids, top)
    g, up = torch.chunk(torch.einsum("th,eih->tei", x, self.gate_up), 2, -1)
    y = torch.einsum("tei,ehi->teh", torch.silu(g) * up, self.down)
    out = (y * full.unsqueeze(-1)).sum(1))" +
         kTail;
}

constexpr char kSparse[] = R"(
    w, ids = torch.topk(scores, 2, -1)
    out = torch.zeros_like(x))";

// Ids 4 and 5 are no experts: the token itself is the answer.
std::string Identity() {
  std::string turns;
  const std::string expert = R"(
    found = torch.where(ids == #)
    rows = x[found[0]]
    y = torch.linear(torch.silu(torch.linear(rows, self.w1_#)) * torch.linear(rows, self.w3_#), self.w2_#)
    out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1)))";
  for (int64_t e = 0; e < kExperts; ++e) {
    std::string turn = e < 4 ? expert
                             : Replace(expert,
                                       "y = torch.linear(torch.silu(torch.linear(rows, self.w1_#)) * "
                                       "torch.linear(rows, self.w3_#), self.w2_#)",
                                       "y = rows");
    for (const char c : turn) turns += c == '#' ? std::to_string(e) : std::string(1, c);
  }
  return kHead + std::string(kSparse) + turns + kTail;
}

// What an expert answers is scaled, in place.
std::string Scaled() {
  return kHead + std::string(kSparse) + ForEachExpert(R"(
    found = torch.where(ids == #)
    rows = x[found[0]]
    y = torch.linear(torch.silu(torch.linear(rows, self.w1_#)) * torch.linear(rows, self.w3_#), self.w2_#)
    y *= 0.75
    out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1)))") +
         kTail;
}

// dbrx: the experts' rows one below the other, chunked.
std::string Chunked() {
  return kHead + std::string(kSparse) + R"(
    a0, a1, a2, a3, a4, a5 = torch.chunk(self.flat_w1.view(6, 12, 16), 6, 0)
    b0, b1, b2, b3, b4, b5 = torch.chunk(self.flat_w3.view(6, 12, 16), 6, 0)
    c0, c1, c2, c3, c4, c5 = torch.chunk(self.flat_w2.view(6, 12, 16), 6, 0))" +
         ForEachExpert(R"(
    found = torch.where(ids == #)
    rows = x[found[0]]
    h = torch.silu(rows.matmul(a#.squeeze(0).t())) * rows.matmul(b#.squeeze(0).t())
    y = h.matmul(c#.squeeze(0))
    out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1)))") +
         kTail;
}

std::string GroupedWithBias() {
  std::string source = Replace(GroupedMmSource(), "    gate, up = torch.chunk",
                               "    both.add_(self.gate_up_bias[ordered])\n"
                               "    gate, up = torch.chunk");
  source = Replace(source, "both.add_(", "both = both.add_(");
  return Replace(source, "    y = y * w", "    y = y.add_(self.down_bias[ordered])\n    y = y * w");
}

std::string LoopWithAddedBias() {
  return LoopSource(Replace(SparseExpert(), "y = torch.linear(h, self.w2_#)", "y = torch.matmul(h, self.w2_#.t()) + self.b2_#"));
}

const BlockMatch* Only(const Matched& matched) {
  for (const Miss& miss : matched.outcome.refusals) ADD_FAILURE() << Describe(miss).predicate << " at " << Describe(miss).node;
  EXPECT_EQ(matched.outcome.matches.size(), 1u);
  return matched.outcome.matches.size() == 1 ? &matched.outcome.matches[0] : nullptr;
}

TEST(RoutingMatch, ATableOfWeights) {
  const Matched matched = Match(MakeBlock(Table()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->routing, Routing::kTable);
  EXPECT_EQ(match->layer.top_k, 2);
  EXPECT_EQ(match->weights->node()->kind(), c10::aten::div);
  ASSERT_NE(match->ids, nullptr);
  EXPECT_EQ(match->ids->node()->kind(), c10::aten::topk);
}

TEST(RoutingMatch, AMaskWithCapacity) {
  const Matched matched = Match(MakeBlock(Capacity()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->routing, Routing::kMask);
  EXPECT_EQ(match->layer.top_k, 1);
  EXPECT_TRUE(match->one_weight);
  EXPECT_EQ(match->ids, nullptr);
  ASSERT_NE(match->mask, nullptr);
  EXPECT_EQ(match->layer.router.at("capacity"), "4");
  ASSERT_EQ(match->layer.notes.size(), 1u);
  EXPECT_THAT(match->layer.notes[0], ::testing::HasSubstr("tokens with 4, a constant of the file"));
}

TEST(RoutingMatch, ACapacityWithSecondChoicesBehindTheFirstIsTheExamples) {
  const auto block = MakeBlock(TopTwoCapacity());
  const Matched matched = Match(block);
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.router.at("capacity"), "4");
  EXPECT_EQ(match->layer.router.at("second_choices"), "last");
  EXPECT_EQ(match->capacity_tests.size(), 2u);
  EXPECT_TRUE(match->layer.notes.empty());
  const Detection detection = Detect(block);
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_THAT(detection.refusals[0].predicate,
              ::testing::HasSubstr("4 tokens an expert, may be that of the trace's example, and no preset"));
}

TEST(RoutingMatch, ASumBeforeTheChoiceIsNoCountOfFirstChoices) {
  const Matched matched = Match(MakeBlock(Replace(Capacity(), "argmax(scores, -1)", "argmax(scores / scores.sum(-1, True), -1)")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_FALSE(match->layer.router.contains("second_choices"));
  EXPECT_EQ(match->layer.notes.size(), 1u);
}

TEST(RoutingMatch, ACapacityOfTheTokensThatAreThereIsNoLimit) {
  const Matched matched = Match(MakeBlock(Replace(Capacity(), "<= 4)", "<= x.size(0))")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_FALSE(match->layer.router.contains("capacity"));
  EXPECT_TRUE(match->layer.notes.empty());
}

TEST(RoutingMatch, TwoMaxima) {
  const Matched matched = Match(MakeBlock(TwoMaxima()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->routing, Routing::kPairs);
  EXPECT_EQ(match->ids->node()->kind(), c10::aten::cat);
}

TEST(RoutingMatch, LogitsBehindThoseOfTheExperts) {
  const Matched matched = Match(MakeBlock(GroupedOfFirstLogits()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.num_experts, kExperts);
  EXPECT_EQ(match->identity_experts, 0);
}

TEST(RoutingMatch, WeightsOnTheInput) {
  const Matched matched = Match(MakeBlock(WeightedInput()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_TRUE(match->layer.weights_on_input);
  EXPECT_EQ(match->layer.form, "dense_stack");
  EXPECT_EQ(match->layer.tensors[0].parts[0].expert_count, kExperts);
}

TEST(RoutingMatch, EveryExpertInOneEinsum) {
  const Matched matched = Match(MakeBlock(Einsum()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_FALSE(match->layer.weights_on_input);
  EXPECT_EQ(match->layer.form, "dense_stack");
  EXPECT_FALSE(match->layer.tensors[1].parts[0].transposed);
}

TEST(RoutingMatch, IdentityExperts) {
  const Matched matched = Match(MakeBlock(Identity()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.num_experts, 4);
  EXPECT_EQ(match->identity_experts, 2);
}

TEST(RoutingMatch, AScaleOfTheAnswersGoesIntoTheWeights) {
  const Matched matched = Match(MakeBlock(Scaled()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->weights_scale, 0.75);
}

TEST(RoutingMatch, ChunksOfAStack) {
  const Matched matched = Match(MakeBlock(Chunked()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  const contract::SourcePart down{"block.flat_w2", 0, kExperts, 0, kHidden, 0, 1, true};
  ASSERT_EQ(match->layer.tensors[1].parts.size(), 1u);
  EXPECT_EQ(match->layer.tensors[1].parts[0], down);
}

TEST(RoutingMatch, BiasesOfStackedExperts) {
  const Matched matched = Match(MakeBlock(GroupedWithBias()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  std::vector<std::string> roles;
  for (const ExpertTensor& tensor : match->layer.tensors) roles.push_back(tensor.role);
  EXPECT_THAT(roles, ::testing::ElementsAre("gate_up", "down", "gate_up_bias", "down_bias"));
}

TEST(RoutingMatch, ABiasAddedBehindAProductIsTheExperts) {
  const Matched matched = Match(MakeBlock(LoopWithAddedBias()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  ASSERT_EQ(match->layer.tensors.size(), 3u);
  EXPECT_EQ(match->layer.tensors[2].role, "down_bias");
}

std::vector<NearMiss> NearMisses() {
  const std::string differs = "the sum is not that of the chosen experts";
  const std::string own = "answered by a feed-forward of its own";
  const std::string drops = "must drop a token where there are more than it says";
  return {
      {"TableOfAllExperts", Table(), "torch.zeros_like(scores).scatter(1, ids, top)", "scores * 2.0", ""},
      {"TableNotZeroElsewhere", Table(), "torch.zeros_like(scores).scatter", "torch.full_like(scores, 0.25).scatter",
       "must be one value"},
      {"TableOtherColumn", Table(), "full[:, 3:3+1]", "full[:, 2:2+1]", own},
      {"TableSquared", Table(), "y * full[:, 3:3+1]", "y * full[:, 3:3+1] * full[:, 3:3+1]", "the sum is not that of"},
      {"TableChangedInPlace", Table(), "full = full / full.sum(-1, True)", "full = full / full.sum(-1, True)\n    full[:, 0] = 1.0",
       "moves rows, compares"},
      {"CapacityOtherMask", Capacity(), "out[mask[:, 2]]", "out[mask[:, 1]]", "must be one value"},
      {"CapacityAddsTwice", Capacity(), "best.unsqueeze(-1) * out", "best.unsqueeze(-1) * out + out", "must be one value"},
      {"CapacityBeyondTrials", LoopSource(SparseExpert()), "torch.where(ids == 2)",
       "torch.where((ids == 2) & (torch.cumsum((ids == 2).to(4), 0) <= 100))", differs},
      {"SecondChoicesOfTheFirstExperts", TopTwoCapacity(), "scores.masked_fill(one.to(11), float(\"-inf\"))", "scores", drops},
      {"SecondChoicesWithMoreRoom", TopTwoCapacity(), "one.sum(0, True) < 4", "one.sum(0, True) < 5", drops},
      {"SecondChoicesCountedTwice", TopTwoCapacity(), "(torch.cumsum(two, 0)", "(torch.cumsum(two * 2, 0)", drops},
      {"FirstChoicesWithRoomForOneMore", TopTwoCapacity(), "one, 0) - 1 < 4", "one, 0) - 1 <= 4", drops},
      {"FirstChoicesCountedFromOne", TopTwoCapacity(), "one, 0) - 1 < 4", "one, 0) < 4", drops},
      {"CapacityCountsAsMask", Capacity(), "(one * (torch.cumsum(one, 0) <= 4)).to(11)", "(torch.cumsum(one, 0) <= 4)",
       "must be one value"},
      {"MaximaShifted", TwoMaxima(), "w.reshape(-1).unsqueeze", "w.t().reshape(-1).unsqueeze", differs},
      {"MaximaOtherIds", TwoMaxima(), "self.down[flat]", "self.down[flat.flip([0])]", ""},
      {"InputWeightOfOthers", WeightedInput(), "full.transpose(0, 1).reshape", "full.flip([1]).transpose(0, 1).reshape",
       "moves rows, compares"},
      {"InputRestNotZero", WeightedInput(), "float(\"-inf\")", "-3.0", "must be one value"},
      {"EinsumMixesTokens", Einsum(), "tei,ehi->teh", "tei,ehi->eth", "must run on made-up tokens"},
      {"EinsumOtherTable", Einsum(), "full.unsqueeze(-1)", "full.flip([1]).unsqueeze(-1)", "moves rows, compares"},
      {"IdentityDoubled", Identity(), "y = rows", "y = rows * 2.0", "baked: the graph holds 4"},
      {"IdentityOfOneExpertMissing", Identity(), "torch.where(ids == 5)", "torch.where(ids == 6)", "baked: the graph holds 4"},
      {"ScaledApart", Scaled(), "y *= 0.75", "y *= 0.5", "the same shape, activation and biases"},
      {"ScaledAndShifted", Scaled(), "y *= 0.75", "y += 0.75", "a feed-forward of its own"},
      {"ChunksExchanged", Chunked(), "h.matmul(c2.squeeze(0))", "h.matmul(c3.squeeze(0))", "baked: the graph holds 5"},
      {"ChunksOfOtherSize", Chunked(), "torch.chunk(self.flat_w2.view(6, 12, 16), 6, 0)",
       "torch.chunk(self.flat_w2.view(6, 16, 12).transpose(1, 2), 6, 0)", "must reach experts of a known form"},
      {"BiasOfOtherRows", GroupedWithBias(), "self.down_bias[ordered]", "self.down_bias[flat]", "the bias of another expert"},
      {"BiasTwice", LoopWithAddedBias(), "self.b2_3", "self.b2_2", "used twice"},
      {"CountNotConstant", GroupedMmSource(), "torch.topk(scores, 2, -1)", "torch.topk(scores, hidden.size(0), -1)",
       "must not depend on the input"},
  };
}

class RoutingRefused : public ::testing::TestWithParam<NearMiss> {};

TEST_P(RoutingRefused, WithTheReason) { ExpectNearMiss(GetParam()); }

INSTANTIATE_TEST_SUITE_P(All, RoutingRefused, ::testing::ValuesIn(NearMisses()), [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace autoep::testing

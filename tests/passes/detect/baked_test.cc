// SPDX-License-Identifier: Apache-2.0
// Loops over experts that a trace unrolled over those that its example chose: rebuilt, or refused with the reason.
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

using ::testing::HasSubstr;
using torch::jit::Module;

// Turns of the loop, as traces write them. "#" is the expert's number, "@" its turn.
constexpr char kRangeTurn[] = R"(
    found@ = torch.where(ids == #)
    rows@ = x[found@[0]]
    h@ = torch.silu(torch.linear(rows@, self.experts.e#.w1)) * torch.linear(rows@, self.experts.e#.w3)
    y@ = torch.linear(h@, self.experts.e#.w2)
    out.index_add_(0, found@[0], y@ * w[found@[0], found@[1]].unsqueeze(-1))
)";
constexpr char kHitTurn[] = R"(
    found@ = torch.where(mask[hit@].squeeze(0))
    rows@ = x[found@[1]]
    h@ = torch.silu(torch.linear(rows@, self.experts.e#.w1)) * torch.linear(rows@, self.experts.e#.w3)
    y@ = torch.linear(h@, self.experts.e#.w2)
    out.index_add_(0, found@[1], y@ * w[found@[1], found@[0]].unsqueeze(-1))
)";
constexpr char kStackedHitTurn[] = R"(
    e@ = hit@[0]
    found@ = torch.where(mask[int(e@)])
    both@ = torch.linear(x[found@[1]], self.gate_up[int(e@)])
    gate@, up@ = torch.chunk(both@, 2, -1)
    y@ = torch.linear(torch.silu(gate@) * up@, self.down[int(e@)])
    out.index_add_(0, found@[1], y@ * w[found@[1], found@[0]].unsqueeze(-1))
)";
// dbrx of transformers 5.
constexpr char kFlatHitTurn[] = R"(
    e@ = hit@[0]
    found@ = torch.where(mask[int(e@)])
    rows@ = x[found@[1]]
    first@ = self.flat_w1.view(-1, 12, 16)[int(e@)]
    third@ = self.flat_w3.view(-1, 12, 16)[int(e@)]
    h@ = torch.silu(rows@.matmul(first@.T)) * rows@.matmul(third@.T)
    y@ = h@.matmul(self.flat_w2.view(-1, 12, 16)[int(e@)])
    out.index_add_(0, found@[1], y@ * w[found@[1], found@[0]].unsqueeze(-1))
)";
// gpt_oss of transformers 4: the weights are read from a table that was made for the shape of the logits.
constexpr char kTableHitTurn[] = R"(
    e@ = hit@[0]
    found@ = torch.where(mask[int(e@)])
    both@ = torch.linear(x[found@[1]], self.gate_up[int(e@)])
    gate@, up@ = torch.chunk(both@, 2, -1)
    y@ = torch.linear(torch.silu(gate@) * up@, self.down[int(e@)])
    out.index_add_(0, found@[1], y@ * table[:, int(e@)].unsqueeze(1)[found@[1]])
)";
constexpr char kStackedRangeTurn[] = R"(
    found@ = torch.where(ids == #)
    gate@, up@ = torch.chunk(torch.linear(x[found@[0]], self.gate_up[#]), 2, -1)
    y@ = torch.linear(torch.silu(gate@) * up@, self.down[#])
    out.index_add_(0, found@[0], y@ * w[found@[0], found@[1]].unsqueeze(-1))
)";
// longcat: an expert that answers the token itself.
constexpr char kIdentityTurn[] = R"(
    own@ = torch.where(ids == #)
    out.index_add_(0, own@[0], x[own@[0]] * w[own@[0], own@[1]].unsqueeze(-1))
)";

std::string Turns(const std::string& turn, const std::vector<int64_t>& experts) {
  std::string text;
  for (size_t i = 0; i < experts.size(); ++i) {
    for (const char c : turn) text += c == '#' ? std::to_string(experts[i]) : c == '@' ? std::to_string(i) : std::string(1, c);
  }
  return text;
}

std::string Hits(size_t count) {
  std::string names;
  for (size_t i = 0; i < count; ++i) names += (i > 0 ? ", hit" : "hit") + std::to_string(i);
  return "\n    mask = torch.one_hot(ids, 6).permute(2, 1, 0)\n    " + names +
         " = torch.unbind(torch.nonzero(mask.sum([-1, -2]) > 0))\n";
}

std::string WithTurns(const std::string& turns) { return Replace(LoopSource(""), "    return", turns + "    return"); }

struct Experts {
  int64_t count = kExperts;
  int64_t wide = -1;         // the expert with another shape
  int64_t other_class = -1;  // .. of another class
  int64_t with_code = -1;    // .. whose module has a forward
  int64_t missing = -1;      // .. that is not there
  int64_t more_attributes = -1;
  int64_t weighted = kExperts;  // how many have weights; the others are torch's Identity, also beside the stacks
  int64_t identity = -1;        // one more that is
};

// A block whose module `experts` has a module for each expert, as a trace leaves them: without code.
Module MakeModular(const std::string& source, const Experts& made = {}) {
  const auto unit = std::make_shared<torch::jit::CompilationUnit>();
  const auto create = [&](const std::string& name) { return Module(c10::QualifiedName("__torch__.tests." + name), unit, true); };
  Module block = create("Block");
  block.register_parameter("gate", at::zeros({kExperts, kHidden}), false);
  block.register_parameter("gate_up", at::zeros({kExperts, 2 * kWidth, kHidden}), false);
  block.register_parameter("down", at::zeros({made.weighted, kHidden, kWidth}), false);
  const auto identity = [&] { return Module(c10::QualifiedName("__torch__.torch.nn.modules.linear.Identity"), unit, true); };
  if (made.weighted < kExperts) block.register_module("identity_expert", identity());
  for (const char* name : {"flat_w1", "flat_w3", "flat_w2"}) {
    block.register_parameter(name, at::zeros({kExperts * kWidth, kHidden}), false);
  }
  Module experts = create("Experts");
  for (int64_t e = 0; e < made.count; ++e) {
    if (e == made.missing) continue;
    if (e >= made.weighted || e == made.identity) {
      experts.register_module("e" + std::to_string(e), identity());
      continue;
    }
    Module expert = create(e == made.other_class ? "Other" : "Expert");
    const int64_t width = e == made.wide ? kWidth + 1 : kWidth;
    expert.register_parameter("w1", at::zeros({width, kHidden}), false);
    expert.register_parameter("w3", at::zeros({width, kHidden}), false);
    expert.register_parameter("w2", at::zeros({kHidden, width}), false);
    if (e == made.more_attributes) expert.register_parameter("bias", at::ones({kHidden}), false);
    if (e == made.with_code) expert.define("def forward(self, x):\n    return x\n");
    experts.register_module("e" + std::to_string(e), expert);
  }
  block.register_module("experts", experts);
  block.define(source);
  return block;
}

void ExpectRebuilt(const Matched& matched, const std::string& why) {
  ASSERT_EQ(matched.outcome.matches.size(), 1u) << (matched.outcome.refusals.empty() ? "" : matched.outcome.refusals[0].predicate);
  const BlockMatch& match = matched.outcome.matches[0];
  EXPECT_EQ(match.layer.num_experts, kExperts);
  EXPECT_EQ(match.layer.top_k, kTopK);
  EXPECT_THAT(match.layer.rebuilt, HasSubstr(why));
  ASSERT_EQ(match.layer.notes.size(), 1u);
  EXPECT_THAT(match.layer.notes[0], HasSubstr("the file itself is wrong for other inputs"));
  EXPECT_FALSE(match.rebuilt.empty());
}

void ExpectRefused(const Matched& matched, const std::string& why) {
  EXPECT_TRUE(matched.outcome.matches.empty());
  ASSERT_EQ(matched.outcome.refusals.size(), 1u);
  EXPECT_THAT(matched.outcome.refusals[0].predicate, ::testing::StartsWith("baked: "));
  EXPECT_THAT(matched.outcome.refusals[0].predicate, HasSubstr(why));
}

TEST(Baked, RangeLoopWithoutTheExpertsNotHit) {
  const Matched matched = Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5}))));
  ExpectRebuilt(matched, "the graph holds 4 of the router's 6 experts");
  const MoeLayer& layer = matched.outcome.matches[0].layer;
  EXPECT_THAT(layer.notes[0], HasSubstr("assumed: experts 1, 4"));
  ASSERT_EQ(layer.tensors[0].parts.size(), 2u * kExperts);
  EXPECT_EQ(layer.tensors[0].parts[1].tensor, "block.experts.e1.w1");
  EXPECT_EQ(layer.tensors[1].parts[4].tensor, "block.experts.e4.w2");
}

TEST(Baked, RangeLoopWithoutTheLastExpert) {
  ExpectRebuilt(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 1, 2, 3, 4})))), "5 of the router's 6 experts");
}

TEST(Baked, HitLoop) {
  ExpectRebuilt(Match(MakeModular(WithTurns(Hits(3) + Turns(kHitTurn, {1, 2, 4})))), "3 of the router's 6 experts");
}

TEST(Baked, HitLoopThatHitAll) {
  ExpectRebuilt(Match(MakeModular(WithTurns(Hits(6) + Turns(kHitTurn, {0, 1, 2, 3, 4, 5})))), "inputs that choose all 6 experts");
}

TEST(Baked, HitLoopOverStackedWeights) {
  const Matched matched = Match(MakeModular(WithTurns(Hits(3) + Turns(kStackedHitTurn, {0, 0, 0}))));
  ExpectRebuilt(matched, "inputs that choose exactly 3 experts");
  EXPECT_EQ(matched.outcome.matches[0].layer.tensors[0].parts.size(), 1u);
}

TEST(Baked, HitLoopOverFlatWeights) {
  const Matched matched = Match(MakeModular(WithTurns(Hits(3) + Turns(kFlatHitTurn, {0, 0, 0}))));
  ExpectRebuilt(matched, "inputs that choose exactly 3 experts");
  const contract::SourcePart down{"block.flat_w2", 0, kExperts, 0, kHidden, 0, 1, true};
  EXPECT_EQ(matched.outcome.matches[0].layer.tensors[1].parts[0], down);
}

std::string TableHits(const std::string& table) {
  return WithTurns("\n    table = " + table + Hits(3) + Turns(kTableHitTurn, {0, 0, 0}));
}

TEST(Baked, HitLoopThatReadsTheWeightsFromATable) {
  const Matched matched = Match(MakeModular(TableHits("torch.zeros_like(logits).scatter_(1, ids, w)")));
  ExpectRebuilt(matched, "inputs that choose exactly 3 experts");
  EXPECT_EQ(matched.outcome.matches[0].weights->node()->kind(), c10::aten::div);
}

TEST(BakedRefusal, ATableThatHoldsMoreThanTheWeights) {
  ExpectRefused(Match(MakeModular(TableHits("torch.ones_like(logits).scatter_(1, ids, w) + 1.0"))),
                "the sum is not that of the chosen experts");
}

TEST(BakedRefusal, ATableMadeOfTheLogits) {
  ExpectRefused(Match(MakeModular(TableHits("(logits > 3.0).to(6).scatter_(1, ids, w)"))), "must be one value");
}

constexpr Experts kTwoIdentities = {.weighted = 4};

const BlockMatch* ExpectIdentities(const Matched& matched) {
  EXPECT_EQ(matched.outcome.matches.size(), 1u) << (matched.outcome.refusals.empty() ? "" : matched.outcome.refusals[0].predicate);
  if (matched.outcome.matches.size() != 1) return nullptr;
  const BlockMatch& match = matched.outcome.matches[0];
  EXPECT_EQ(match.layer.num_experts, 4);
  EXPECT_EQ(match.identity_experts, 2);
  EXPECT_EQ(match.layer.tensors[0].sources[0].size(0), match.layer.tensors[0].parts[0].expert_count == 4 ? 4 : kWidth);
  return &match;
}

TEST(Baked, IdentityExpertsOfWhichTheExampleChoseOne) {
  const std::string turns = Turns(kRangeTurn, {0, 2, 3}) + Turns(kIdentityTurn, {5});
  const Matched matched = Match(MakeModular(WithTurns(turns), kTwoIdentities));
  const BlockMatch* match = ExpectIdentities(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->rebuilt.size(), 4u);
  EXPECT_THAT(match->layer.rebuilt, HasSubstr("the graph holds 4 of the router's 6 experts"));
  EXPECT_THAT(match->layer.notes[0], HasSubstr("assumed: experts 1 of experts.e,"));
  EXPECT_THAT(match->layer.notes[0], HasSubstr("assumed: experts 4, which the graph does not hold, answer the token itself"));
}

TEST(Baked, IdentityExpertsBesideAStackThatHasRowsForThem) {
  const Matched matched = Match(MakeModular(WithTurns(Turns(kStackedRangeTurn, {0, 3, 1})), kTwoIdentities));
  const BlockMatch* match = ExpectIdentities(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_THAT(match->layer.rebuilt, HasSubstr("the graph holds 3 of the router's 6 experts"));
  EXPECT_THAT(match->layer.notes[0], HasSubstr("assumed: experts 4, 5, which the graph does not hold, answer the token itself"));
  EXPECT_EQ(match->layer.tensors[0].parts[0].expert_count, 4);
}

TEST(NotBaked, AStackThatHasRowsForIdentityExpertsToo) {
  const std::string turns = Turns(kStackedRangeTurn, {0, 1, 2, 3}) + Turns(kIdentityTurn, {4, 5});
  const Matched matched = Match(MakeModular(WithTurns(turns), kTwoIdentities));
  const BlockMatch* match = ExpectIdentities(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.rebuilt, "");
  EXPECT_EQ(match->layer.tensors[0].parts[0].expert_count, 4);
}

TEST(BakedRefusal, AnIdentityExpertWhoseAnswerIsDoubled) {
  const std::string turns = Turns(kRangeTurn, {0, 2, 3}) + Replace(Turns(kIdentityTurn, {5}), "x[own", "2.0 * x[own");
  ExpectRefused(Match(MakeModular(WithTurns(turns), kTwoIdentities)), "expert 5 must answer the token itself");
}

TEST(BakedRefusal, AnIdentityExpertBehindSomethingElse) {
  const std::string turns = Turns(kRangeTurn, {0, 2, 3}) + "    out = torch.cos(out)\n" + Turns(kIdentityTurn, {5});
  ExpectRefused(Match(MakeModular(WithTurns(turns), kTwoIdentities)), "what was chosen must not be used behind");
}

TEST(BakedRefusal, AnIdentityExpertBeforeOneWithWeights) {
  Experts made;
  made.identity = 4;
  ExpectRefused(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)), "the module is a Identity and not a Expert");
}

TEST(BakedRefusal, AShorterStackThatNothingExplains) {
  Module block = MakeModular(WithTurns(Turns(kStackedRangeTurn, {0, 3, 1})));
  block.setattr("down", at::zeros({4, kHidden, kWidth}));
  ExpectRefused(Match(block), "the experts must use all entries of the stacked weight down");
}

TEST(Baked, ConstantIndicesIntoStackedWeights) {
  ExpectRebuilt(Match(MakeModular(WithTurns(Turns(kStackedRangeTurn, {0, 3, 4})))), "3 of the router's 6 experts");
}

// "part0, part1, ..": a name, or a product of expert "#", for each expert.
std::string ForEach(const std::string& part) {
  std::string text;
  for (int64_t e = 0; e < kExperts; ++e) {
    text += e > 0 ? ", " : "";
    for (const char c : part) text += c == '#' ? std::to_string(e) : std::string(1, c);
  }
  return text;
}

// Rows sorted by expert and split by constant sizes; `hidden` makes h of a0, a1, .. and `down` an expert's output of its b.
std::string SplitSource(const std::string& hidden, const std::string& down) {
  return WithTurns("\n    order = torch.argsort(ids.reshape(-1))\n    rows = x[torch.floor_divide(order, 2)]\n    " + ForEach("a#") +
                   " = torch.split_with_sizes(rows, [2, 0, 3, 1, 1, 1], 0)\n" + hidden + "    " + ForEach("b#") +
                   " = torch.split_with_sizes(h, [2, 0, 3, 1, 1, 1], 0)\n    y = torch.cat([" + ForEach(down) + R"(], 0)
    y = y * w.reshape(-1)[order].unsqueeze(-1)
    out = out.index_add(0, torch.floor_divide(order, 2), y)
)");
}

TEST(Baked, ConstantGroupSizes) {
  const std::string hidden = "    gate, up = torch.chunk(torch.cat([" + ForEach("torch.linear(a#, self.gate_up[#])") +
                             "], 0), 2, -1)\n    h = torch.silu(gate) * up\n";
  const std::string source = SplitSource(hidden, "torch.linear(b#, self.down[#])");
  ExpectRebuilt(Match(MakeModular(source)), "number of rows that each expert got");
  const std::string other_sizes = Replace(source, "(h, [2, 0, 3, 1, 1, 1]", "(h, [2, 0, 3, 1, 2, 0]");
  EXPECT_TRUE(Match(MakeModular(other_sizes)).outcome.matches.empty());
}

// As freezing leaves it.
TEST(Baked, ConstantGroupSizesAndATensorForEachExpert) {
  const std::string hidden = "    gate = torch.cat([" + ForEach("torch.linear(a#, self.experts.e#.w1)") +
                             "], 0)\n    up = torch.cat([" + ForEach("torch.linear(a#, self.experts.e#.w3)") +
                             "], 0)\n    h = torch.silu(gate) * up\n";
  const std::string source = SplitSource(hidden, "torch.linear(b#, self.experts.e#.w2)");
  const Matched matched = Match(MakeModular(source));
  ExpectRebuilt(matched, "number of rows that each expert got");
  const auto& tensors = matched.outcome.matches[0].layer.tensors;
  ASSERT_EQ(tensors[0].parts.size(), 2u * kExperts);
  EXPECT_EQ(tensors[0].parts[3].tensor, "block.experts.e3.w1");
  EXPECT_EQ(tensors[1].parts[5].tensor, "block.experts.e5.w2");
  EXPECT_TRUE(Match(MakeModular(source, {.wide = 2})).outcome.matches.empty());
  ExpectRefused(Match(MakeModular(Replace(source, "b4, self.experts.e4.w2", "b4, self.experts.e3.w2"))), "is used twice");
  EXPECT_TRUE(Match(MakeModular(Replace(source, "b4, self.experts.e4.w2", "b3, self.experts.e4.w2"))).outcome.matches.empty());
}

// A mask [T, E] says which tokens an expert answers: the best expert's, as long as it has room.
constexpr char kMaskRoute[] = R"(
    one = torch.one_hot(torch.argmax(scores, -1), 6)
    mask = one * (torch.cumsum(one, 0) <= 4)
    best, unused = torch.max(scores, -1)
)";
constexpr char kMaskHitTurn[] = R"(
    found@ = torch.where(turned[hit@].squeeze(0))
    rows@ = x[found@[0]]
    h@ = torch.silu(torch.linear(rows@, self.experts.e#.w1)) * torch.linear(rows@, self.experts.e#.w3)
    y@ = torch.linear(h@, self.experts.e#.w2)
    out.index_add_(0, found@[0], y@ * best.unsqueeze(-1)[found@[0]])
)";
constexpr char kMaskTurn[] = R"(
    rows@ = x[mask[:, #].to(11)]
    h@ = torch.silu(torch.linear(rows@, self.experts.e#.w1)) * torch.linear(rows@, self.experts.e#.w3)
    out[mask[:, #].to(11)] = torch.linear(h@, self.experts.e#.w2)
)";

std::string WithMask(const std::string& turns) {
  const std::string source = Replace(WithTurns(kMaskRoute + turns), "    w, ids = torch.topk(scores, 2, -1)\n", "");
  return Replace(source, "    w = w / w.sum(-1, True)\n", "");
}

std::string MaskHits(const std::string& turns) {
  return WithMask("    turned = mask.t()\n    hit0, hit1, hit2 = torch.unbind(torch.nonzero(turned.sum([-1]) > 0))\n" + turns);
}

void ExpectMask(const Matched& matched, const std::string& why) {
  ASSERT_EQ(matched.outcome.matches.size(), 1u) << (matched.outcome.refusals.empty() ? "" : matched.outcome.refusals[0].predicate);
  const BlockMatch& match = matched.outcome.matches[0];
  EXPECT_EQ(match.routing, Routing::kMask);
  EXPECT_EQ(match.layer.num_experts, kExperts);
  EXPECT_EQ(match.layer.top_k, 1);
  EXPECT_TRUE(match.one_weight);
  EXPECT_THAT(match.layer.rebuilt, HasSubstr(why));
}

TEST(Baked, HitLoopOverAMaskOfNumbers) {
  ExpectMask(Match(MakeModular(MaskHits(Turns(kMaskHitTurn, {1, 2, 4})))), "3 of the router's 6 experts");
}

TEST(BakedRefusal, AMaskThatIsNotZeroAndOne) {
  const std::string source = Replace(MaskHits(Turns(kMaskHitTurn, {1, 2, 4})), "mask = one * (", "mask = one * 2 * (");
  EXPECT_TRUE(Match(MakeModular(source)).outcome.matches.empty());
}

TEST(Baked, AMaskedLoopOfOneRowAnExpert) {
  std::string source = WithMask(Turns(kMaskTurn, {0, 1, 3, 4}) + "    out = best.unsqueeze(-1) * out\n");
  const std::string answer = "torch.linear(h1, self.experts.e1.w2)";
  source = Replace(source, answer, answer + ".view([16])");
  ExpectMask(Match(MakeModular(source)), "number of rows that each expert got");
}

TEST(BakedRefusal, AViewOfAnotherRow) {
  std::string source = WithMask(Turns(kMaskTurn, {0, 1, 3, 4}) + "    out = best.unsqueeze(-1) * out\n");
  const std::string answer = "torch.linear(h1, self.experts.e1.w2)";
  source = Replace(source, answer, answer + ".view([2, 8])");
  EXPECT_TRUE(Match(MakeModular(source)).outcome.matches.empty());
}

TEST(BakedRefusal, ALimitOnTheTokensOfAnExpert) {
  const std::string source = Replace(WithTurns(Hits(3) + Turns(kHitTurn, {1, 2, 4})), "torch.where(mask[hit1].squeeze(0))",
                                     "torch.where(mask[hit1].squeeze(0) * (torch.cumsum(mask[hit1].squeeze(0), 1) <= 300))");
  ExpectRefused(Match(MakeModular(source)), "the sum is not that of the chosen experts");
}

TEST(BakedRefusal, AnotherShape) {
  Experts made;
  made.wide = 4;
  ExpectRefused(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)), "w1 has another shape or dtype");
}

TEST(BakedRefusal, AnotherClass) {
  Experts made;
  made.other_class = 1;
  ExpectRefused(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)), "is a Other and not a Expert");
}

TEST(BakedRefusal, MoreTensors) {
  Experts made;
  made.more_attributes = 1;
  ExpectRefused(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)), "has other attributes");
}

TEST(BakedRefusal, AnExpertWithCodeWasNotLeftOutByATrace) {
  Experts made;
  made.with_code = 4;
  ExpectRefused(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)), "has code");
}

TEST(BakedRefusal, AMissingModule) {
  Experts made;
  made.missing = 4;
  EXPECT_TRUE(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)).outcome.matches.empty());
}

TEST(BakedRefusal, MoreModulesThanLogits) {
  Experts made;
  made.count = kExperts + 1;
  EXPECT_TRUE(Match(MakeModular(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), made)).outcome.matches.empty());
}

TEST(BakedRefusal, AHitExpertWithAnotherActivation) {
  const std::string source =
      Replace(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), "torch.silu(torch.linear(rows1, ", "torch.gelu(torch.linear(rows1, ");
  EXPECT_TRUE(Match(MakeModular(source)).outcome.matches.empty());
}

TEST(BakedRefusal, AnExpertUnderAnotherNumber) {
  const std::string source = Replace(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), "ids == 3", "ids == 4");
  ExpectRefused(Match(MakeModular(source)), "the sum is not that of the chosen experts");
}

TEST(BakedRefusal, TwoHitExpertsExchanged) {
  ExpectRefused(Match(MakeModular(WithTurns(Hits(3) + Turns(kHitTurn, {1, 4, 2})))), "the sum is not that of the chosen experts");
}

TEST(BakedRefusal, AnotherSlot) {
  const std::string source =
      Replace(WithTurns(Hits(3) + Turns(kHitTurn, {1, 2, 4})), "w[found1[1], found1[0]]", "w[found1[1], 1 - found1[0]]");
  ExpectRefused(Match(MakeModular(source)), "the sum is not that of the chosen experts");
}

TEST(BakedRefusal, AnExpertOutsideTheSum) {
  // Expert 5's rows are added behind the sum: the sum alone would lose it, or have it twice.
  const std::string source = Replace(WithTurns(Turns(kRangeTurn, {0, 2, 3, 5})), "out.index_add_(0, found3[0], y3",
                                     "out = torch.cos(out)\n    out.index_add_(0, found3[0], y3");
  EXPECT_TRUE(Match(MakeModular(source)).outcome.matches.empty());
}

TEST(BakedRefusal, ATensorWithoutAModule) {
  std::string source = LoopSource("");
  for (const char* number : {"0", "1", "2", "4", "5"}) {
    std::string turn;
    for (const char c : SparseExpert()) turn += c == '#' ? std::string(number) : std::string(1, c);
    source = Replace(source, "    return", turn + "    return");
  }
  ExpectRefused(Match(MakeBlock(source)), "is no module of its own");
}

}  // namespace
}  // namespace autoep::testing

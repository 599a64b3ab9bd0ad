// SPDX-License-Identifier: Apache-2.0
// Each form as it should be: what is found in it, and which nodes go.
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "passes/detect/graph_text.h"
#include "passes/detect/ir.h"
#include "passes/detect/proof_memory.h"
#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

const BlockMatch* Only(const Matched& matched) {
  for (const Miss& miss : matched.outcome.refusals) ADD_FAILURE() << Describe(miss).predicate << " at " << Describe(miss).node;
  EXPECT_EQ(matched.outcome.matches.size(), 1u);
  return matched.outcome.matches.size() == 1 ? &matched.outcome.matches[0] : nullptr;
}

void ExpectLayer(const MoeLayer& layer, const std::string& form) {
  EXPECT_EQ(layer.form, form);
  EXPECT_EQ(layer.num_experts, kExperts);
  EXPECT_EQ(layer.top_k, kTopK);
  EXPECT_EQ(layer.hidden, kHidden);
  EXPECT_EQ(layer.intermediate, kWidth);
  EXPECT_EQ(layer.activation, "silu_gated");
  EXPECT_EQ(layer.router.at("scores"), "softmax");
  EXPECT_EQ(layer.router.at("renorm"), "true");
  ASSERT_EQ(layer.tensors.size(), 2u);
  EXPECT_EQ(layer.tensors[0].role, "gate_up");
  EXPECT_EQ(layer.tensors[0].shape, (std::vector<int64_t>{kExperts, 2 * kWidth, kHidden}));
  EXPECT_EQ(layer.tensors[1].role, "down");
  EXPECT_EQ(layer.tensors[1].shape, (std::vector<int64_t>{kExperts, kHidden, kWidth}));
  EXPECT_EQ(layer.ExpertBytes(), kExperts * 3 * kWidth * kHidden * 4);
}

bool Consumes(const BlockMatch& match, const char* kind) {
  const auto symbol = c10::Symbol::fromQualString(kind);
  return std::any_of(match.consumed.begin(), match.consumed.end(), [&](const auto* node) { return node->kind() == symbol; });
}

// An expert that takes no more than `most` of its hits.
std::string Bounded(std::string expert) {
  const std::string found = "torch.where(ids == #)";
  return expert.replace(expert.find(found), found.size(), "[hits[:most] for hits in " + found + "]");
}

struct FormCase {
  const char* name;
  std::string source;
  const char* form;
  const char* product;  // an op that must be gone
};

void PrintTo(const FormCase& form, std::ostream* out) { *out << form.name; }

class Forms : public ::testing::TestWithParam<FormCase> {};

TEST_P(Forms, AreFound) {
  const Matched matched = Match(MakeBlock(GetParam().source));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  ExpectLayer(match->layer, GetParam().form);
  EXPECT_FALSE(match->flatten);
  EXPECT_EQ(match->out_dtype, at::kFloat);
  EXPECT_EQ(match->ids->node()->kind(), c10::aten::topk);
  EXPECT_EQ(match->weights->node()->kind(), c10::aten::div);
  EXPECT_EQ(match->tokens->node()->kind(), c10::aten::reshape);
  EXPECT_EQ(match->insert_after->owningBlock(), matched.graph->block());
  EXPECT_TRUE(Consumes(*match, GetParam().product));
  EXPECT_FALSE(Consumes(*match, "aten::softmax"));
  EXPECT_FALSE(Consumes(*match, "aten::div"));
}

INSTANTIATE_TEST_SUITE_P(
    All, Forms,
    ::testing::Values(FormCase{"grouped_mm", GroupedMmSource(), "grouped_mm", "aten::_grouped_mm"},
                      FormCase{"batched_mm", BatchedMmSource(), "batched_mm", "aten::bmm"},
                      FormCase{"sparse", LoopSource(SparseExpert()), "expert_loop", "aten::linear"},
                      FormCase{"conditional", LoopSource(ConditionalExpert()), "expert_loop", "prim::If"},
                      // More tokens lead away from where it would count, or do not come nearer.
                      FormCase{"harmless_limit", LoopSource("    most = x.size(0) * 2 + 9\n" + Bounded(SparseExpert())),
                               "expert_loop", "aten::linear"},
                      FormCase{"dense", LoopSource(DenseExpert()), "expert_loop", "aten::linear"}),
    [](const auto& info) { return info.param.name; });

TEST(Match, StackedWeightsAreOnePart) {
  const Matched matched = Match(MakeBlock(GroupedMmSource()));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  const contract::SourcePart expected{"block.gate_up", 0, kExperts, 0, 2 * kWidth, 0, 1, false};
  ASSERT_EQ(match->layer.tensors[0].parts.size(), 1u);
  EXPECT_EQ(match->layer.tensors[0].parts[0], expected);
}

TEST(Match, EachExpertsGateAndUpAreFoundByUse) {
  // w3 is the activated one here: names say nothing.
  std::string expert = Replace(SparseExpert(), "torch.silu(torch.linear(rows, self.w1_#))", "torch.linear(rows, self.w1_#)");
  expert = Replace(expert, "* torch.linear(rows, self.w3_#)", "* torch.silu(torch.linear(rows, self.w3_#))");
  const Matched matched = Match(MakeBlock(LoopSource(expert)));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  const auto& parts = match->layer.tensors[0].parts;
  ASSERT_EQ(parts.size(), 2u * kExperts);
  EXPECT_EQ(parts[0], (contract::SourcePart{"block.w3_0", 0, 1, 0, kWidth, 0, 1, false}));
  EXPECT_EQ(parts[kExperts], (contract::SourcePart{"block.w1_0", 0, 1, kWidth, kWidth, 0, 1, false}));
}

TEST(Match, ExpertsAreNumberedByWhoChoosesThem) {
  // The loop's turn # answers the choice 5 - #.
  std::string source = LoopSource(SparseExpert());
  for (int64_t e = 0; e < kExperts; ++e) {
    source = Replace(source, "ids == " + std::to_string(e) + ")", "ids == (" + std::to_string(kExperts - 1 - e) + "))");
  }
  const Matched matched = Match(MakeBlock(source));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.tensors[1].parts[0].tensor, "block.w2_5");
  EXPECT_EQ(match->layer.tensors[1].parts[5].tensor, "block.w2_0");
}

TEST(Match, TokensOfThreeDimensionsAreFlattened) {
  const Matched matched = Match(MakeBlock(Replace(LoopSource(DenseExpert()), "hidden.reshape(-1, hidden.size(-1))", "hidden")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_TRUE(match->flatten);
}

TEST(Match, WeightsAreTakenAfterTheirCast) {
  const Matched matched = Match(MakeBlock(Replace(BatchedMmSource(), "w.sum(-1, True)", "w.sum(-1, True)\n    w = w.to(15)")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->weights->node()->kind(), c10::aten::to);
}

TEST(Match, InPlaceNormalisationBelongsToTheRouter) {
  const Matched matched = Match(MakeBlock(Replace(LoopSource(SparseExpert()), "w = w / w.sum(-1, True)", "w.div_(w.sum(-1, True))")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_FALSE(Consumes(*match, "aten::div_"));
}

TEST(Match, StackedParameterIndexedByALoopIsOneTensor) {
  std::string source = LoopSource("");
  source = Replace(source, "    return", R"(
    for e in range(6):
        found = torch.where(ids == e)
        both = torch.linear(x[found[0]], self.gate_up[e])
        gate, up = torch.chunk(both, 2, -1)
        y = torch.linear(torch.silu(gate) * up, self.down[e])
        out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))
    return)");
  const Matched matched = Match(MakeBlock(source));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  ExpectLayer(match->layer, "expert_loop");
  EXPECT_EQ(match->layer.tensors[0].parts[0].expert_count, kExperts);
  EXPECT_TRUE(Consumes(*match, "prim::Loop"));
}

// One matrix for all experts, which a script cuts into parts and turns into a list of matrices; sizes are attributes.
torch::jit::Module MakeBlockOfParts(const std::string& from, const std::string& to) {
  torch::jit::Module block = MakeBlock("def unused(self):\n    return 0\n");
  block.register_attribute("experts", c10::IntType::get(), kExperts);
  block.register_attribute("width", c10::IntType::get(), kWidth);
  const std::string source = Replace(LoopSource(""), "    return", R"(
    w1 = [part.squeeze(0) for part in self.flat_w1.view([self.experts, self.width, 16]).chunk(self.experts, 0)]
    w3 = [part.squeeze(0) for part in self.flat_w3.view([self.experts, self.width, 16]).chunk(self.experts, 0)]
    w2 = [part.squeeze(0) for part in self.flat_w2.view([self.experts, self.width, 16]).chunk(self.experts, 0)]
    for e in range(self.experts):
        found = torch.where(ids == e)
        rows = x[found[0]]
        y = (torch.silu(rows.matmul(w1[e].t())) * rows.matmul(w3[e].t())).matmul(w2[e])
        out.index_add_(0, found[0], y * w[found[0], found[1]].unsqueeze(-1))
    return)");
  block.define(from.empty() ? source : Replace(source, from, to));
  return block;
}

TEST(Match, AListOfPartsIsOneTensor) {
  const Matched matched = Match(MakeBlockOfParts("", ""));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  ExpectLayer(match->layer, "expert_loop");
  EXPECT_EQ(match->layer.tensors[1].parts[0], (contract::SourcePart{"block.flat_w2", 0, kExperts, 0, kHidden, 0, 1, true}));
  EXPECT_TRUE(Consumes(*match, "aten::append"));
}

struct PartsCase {
  const char* name;
  std::string from, to;
};

void PrintTo(const PartsCase& parts, std::ostream* out) { *out << parts.name; }

class Parts : public ::testing::TestWithParam<PartsCase> {};

TEST_P(Parts, InAnyOtherOrderAreNotTaken) {
  EXPECT_TRUE(Match(MakeBlockOfParts(GetParam().from, GetParam().to)).outcome.matches.empty());
}

const std::string kForW1 = "for part in self.flat_w1.view([self.experts, self.width, 16]).chunk(self.experts, 0)]";
const std::string kLoop = "    for e in range(self.experts):";

INSTANTIATE_TEST_SUITE_P(
    All, Parts,
    ::testing::Values(PartsCase{"reversed", kLoop, "    w1.reverse()\n" + kLoop},
                      PartsCase{"replaced", kLoop, "    w1[0] = w1[1]\n" + kLoop},
                      PartsCase{"inserted", kLoop, "    w1.insert(0, w1[5])\n" + kLoop},
                      PartsCase{"appended", kLoop, "    w1.append(w1[0])\n" + kLoop},
                      PartsCase{"scaled", "w1 = [part.squeeze(0) ", "w1 = [(part * 2).squeeze(0) "},
                      PartsCase{"of_two_rows", kForW1, "for part in self.flat_w1.view([3, 24, 16]).chunk(3, 0)]"},
                      PartsCase{"changed_in_place", kLoop, "    w1[0].mul_(2)\n" + kLoop},
                      PartsCase{"another_expert", "matmul(w3[e].t())", "matmul(w3[5 - e].t())"}),
    [](const auto& info) { return info.param.name; });

TEST(Match, AStackIndexedByATensorOfNoDimensionIsOneTensor) {
  const auto source = [](const std::string& chosen) {
    return Replace(LoopSource(""), "    return", R"(
    mask = torch.one_hot(ids, 6).permute(2, 1, 0)
    hits = (mask.sum([-1, -2]) > 0).nonzero()
    for i in range(len(hits)):
        e = )" + chosen + R"(
        found = torch.where(mask[hits[i][0]])
        both = torch.matmul(x[found[1]], self.gate_up[e].t())
        gate, up = torch.chunk(both, 2, -1)
        y = torch.matmul(torch.silu(gate) * up, self.down[e].t())
        out.index_add_(0, found[1], y * w[found[1], found[0]].unsqueeze(-1))
    return)");
  };
  const Matched matched = Match(MakeBlock(source("hits[i][0]")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  ExpectLayer(match->layer, "expert_loop");
  EXPECT_EQ(match->layer.tensors[0].parts[0].expert_count, kExperts);
  EXPECT_TRUE(Match(MakeBlock(source("hits[i]"))).outcome.matches.empty());
}

// Of six experts the last two answer the token itself.
std::string SourceWithIdentity(const std::string& own, const std::string& weights) {
  const std::string expert = Replace(SparseExpert(), "y * w[", "y * " + weights + "[");
  std::string body = "    rest = (w * (ids >= 4)).sum(-1, True)\n" + own;
  for (int64_t e = 0; e < 4; ++e) {
    for (const char c : expert) body += c == '#' ? std::to_string(e) : std::string(1, c);
  }
  return Replace(LoopSource(""), "    return", body + "    out = out + x * rest\n    return");
}

TEST(Match, WeightsMayBeMaskedWhereExpertsAnswerTheTokenItself) {
  const Matched matched = Match(MakeBlock(SourceWithIdentity("    own = w.masked_fill(ids >= 4, 0.0)\n", "own")));
  const BlockMatch* match = Only(matched);
  ASSERT_NE(match, nullptr);
  EXPECT_EQ(match->layer.num_experts, 4);
  EXPECT_EQ(match->identity_experts, 2);
  EXPECT_TRUE(Match(MakeBlock(SourceWithIdentity("    own = w.masked_fill(ids >= 3, 0.0)\n", "own"))).outcome.matches.empty());
}

// Neither is proved, and the block is left with the experts that the graph holds.
TEST(Match, ExpertsThatAnswerTheTokenItselfKeepTheirIdsAndWeights) {
  const std::string masked = SourceWithIdentity("    own = w.masked_fill(ids >= 4, 0.0)\n", "own");
  const std::string in_place = SourceWithIdentity("    w.masked_fill_(ids >= 4, 0.0)\n", "w");
  const std::string clamped = Replace(masked, "torch.where(ids == 3)", "torch.where(torch.clamp(ids, 0, 3) == 3)");
  for (const std::string& source : {in_place, clamped}) {
    const Matched matched = Match(MakeBlock(source));
    EXPECT_TRUE(matched.outcome.matches.empty());
    ASSERT_EQ(matched.outcome.refusals.size(), 1u);
    EXPECT_THAT(matched.outcome.refusals[0].predicate, ::testing::HasSubstr("4 of the router's 6 experts"));
  }
}

TEST(Match, OtherResultsSurvive) {
  std::string source = Replace(LoopSource(SparseExpert()), "-> Tensor:", "-> Tuple[Tensor, Tensor]:");
  source = Replace(source, "return out.view_as(hidden)", "return out.view_as(hidden), logits");
  EXPECT_NE(Only(Match(MakeBlock(source))), nullptr);
}

TEST(Match, AGraphWithoutTopKHasNothing) {
  const Matched matched = Match(MakeBlock("def forward(self, x: Tensor) -> Tensor:\n    return torch.linear(x, self.gate)\n"));
  EXPECT_TRUE(matched.outcome.matches.empty());
  EXPECT_TRUE(matched.outcome.refusals.empty());
  EXPECT_TRUE(matched.outcome.unmet.empty());
}

// Expert 4's tokens are those of the expert whose number the module keeps.
torch::jit::Module MakeBlockWithNumber(int64_t number, int64_t width = kWidth) {
  torch::jit::Module block = MakeBlock("def unused(self):\n    return 0\n");
  block.register_attribute("fourth", c10::IntType::get(), number);
  for (const char* name : {"w1_0", "w3_0"}) block.setattr(name, at::zeros({width, kHidden}));
  block.define(Replace(LoopSource(SparseExpert()), "ids == 4", "ids == self.fourth"));
  return block;
}

TEST(ProofMemory, ServesEqualBlocksAndNoOthers) {
  ProofMemory memory;
  const auto match = [&](const torch::jit::Module& block) {
    const auto graph = block.get_method("forward").graph()->copy();
    PrepareBlockGraph(graph);
    return std::pair(GraphText(*graph, block), MatchBlocks(graph, block, "block", &memory).matches.size());
  };
  const auto first = match(MakeBlockWithNumber(4));
  EXPECT_EQ(first.second, 1u);
  EXPECT_EQ(match(MakeBlockWithNumber(4)), first);
  // Graphs that are equal in their nodes, over modules that are not.
  for (const torch::jit::Module& other : {MakeBlockWithNumber(3), MakeBlockWithNumber(4, kWidth + 1)}) {
    const auto found = match(other);
    EXPECT_NE(found.first, first.first);
    EXPECT_EQ(found.second, 0u);
  }
}

}  // namespace
}  // namespace autoep::testing

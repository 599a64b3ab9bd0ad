// SPDX-License-Identifier: Apache-2.0
// MatchRouterForm and InsertRoute: routers as the families write them become one op and keep every bit; what is not one of the
// op's forms is left alone.
#include "passes/rewrite/fuse_router.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/round.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>

#include "passes/detect/match.h"
#include "passes/normalize/simplify.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;

constexpr int64_t kExperts = 8;
constexpr int64_t kHidden = 5;

at::Tensor Random(std::vector<int64_t> shape, uint64_t seed) {
  at::Generator random = at::globalContext().defaultGenerator(c10::kCPU).clone();
  random.set_current_seed(seed);
  return at::randn(shape, random);
}

// A block whose forward(x [T, H]) ends in `return w, ids` and more.
Module Router(const std::string& body, at::ScalarType dtype) {
  Module module("Router");
  module.register_parameter("gate", Random({kExperts, kHidden}, 1).to(dtype), /*is_buffer=*/false);
  module.register_attribute("top_k", c10::IntType::get(), 3);
  module.register_buffer("bias", at::round(Random({kExperts}, 2) * 4) / 8);
  module.define("def forward(self, x):\n    logits = torch.linear(x, self.gate)\n" + body);
  return module;
}

std::shared_ptr<Graph> GraphOf(const Module& module) {
  return torch::jit::toGraphFunction(module.get_method("forward").function()).graph();
}

// Whether the last top-k of the module's forward became the op.
bool Fuse(const Module& module) {
  const auto graph = GraphOf(module);
  PrepareBlockGraph(graph);
  Node* topk = nullptr;
  for (Node* node : graph->nodes()) topk = node->kind() == c10::aten::topk ? node : topk;
  const auto form = MatchRouterForm(topk, kExperts, torch::jit::AliasDb(graph));
  if (!form) return false;
  {
    const torch::jit::WithInsertPoint here(topk);
    InsertRoute(*graph, *form, graph->insertConstant("block#plan"));
  }
  RemoveDeadCode(graph);
  graph->lint();
  return true;
}

struct Case {
  const char* name;
  const char* body;
};

void PrintTo(const Case& each, std::ostream* out) { *out << each.name; }

constexpr char kGroups[] = R"(
    best = torch.topk(group_scores, 2, -1, True, False)[1]
    kept = torch.zeros_like(group_scores)
    kept = kept.scatter_(1, best, 1)
    mask = kept.unsqueeze(-1).expand([-1, 4, 2]).reshape([-1, 8])
)";

const std::string kByMax = std::string(R"(
    p = torch.softmax(logits, -1, dtype=6)
    group_scores = torch.max(p.view([-1, 4, 2]), -1)[0]
)") + kGroups + R"(
    w, ids = torch.topk(p.masked_fill(~mask.to(11), 0.0), 3, -1, True, False)
    return w * 16.0, ids
)";

// Tokens [B, S, H], and groups whose rows are counted so.
std::string ByMaxOf(const std::string& rows) {
  return R"(
    h = x.unsqueeze(0)
    logits = torch.linear(h.view([-1, h.size(2)]).to(6), self.gate.to(6))
    rows = )" +
         rows + R"(
    p = torch.softmax(logits, -1, dtype=6)
    group_scores = torch.max(p.view([rows, 4, -1]), -1)[0]
    best = torch.topk(group_scores, 2, -1, True, False)[1]
    kept = torch.zeros_like(group_scores)
    kept = kept.scatter_(1, best, 1)
    mask = kept.unsqueeze(-1).expand([rows, 4, 2]).reshape([rows, -1])
    w, ids = torch.topk(p.masked_fill(~mask.to(11), 0.0), 3, -1, True, False)
    return w * 1.5, ids
)";
}

const std::string kRowsOfTokens = ByMaxOf("h.size(1) * h.size(0)");
const std::string kRowsOfLogits = ByMaxOf("logits.size(0)");
const std::string kRowsOfOneSize = ByMaxOf("h.size(1)");
const std::string kRowsOfASizeTwice = ByMaxOf("h.size(0) * h.size(0)");
const std::string kRowsOfAll = ByMaxOf("h.size(0) * h.size(1) * h.size(2)");
const std::string kRowsOfAnother = ByMaxOf("x.size(0) * h.size(1)");
const std::string kColumns = ByMaxOf("logits.size(1)");

const std::string kByTopTwo = std::string(R"(
    s = torch.sigmoid(logits.to(6))
    choice = s + self.bias
    group_scores = torch.topk(choice.view([-1, 4, 2]), 2, -1)[0].sum([-1])
)") + kGroups + R"(
    choice = choice.masked_fill(~mask.to(11), float("-inf"))
    ids = torch.topk(choice, 3, -1, True, False)[1]
    w = s.gather(1, ids)
    w /= w.sum([-1], True) + 1e-20
    return w * 2.5, ids
)";

// Dtypes are numbers where TorchScript is compiled from C++: 6 float32, 11 bool, 15 bfloat16.
const Case kRouters[] = {
    {"softmax_topk_sum", R"(
    p = torch.softmax(logits.to(6), -1)
    w, ids = torch.topk(p, 2, -1)
    w /= w.sum([-1], True)
    return w.to(15), ids
)"},
    {"softmax_alone", R"(
    w, ids = torch.topk(torch.softmax(logits, 1, dtype=6), 3, -1)
    return w, ids
)"},
    {"softmax_of_the_chosen", R"(
    w, ids = torch.topk(logits, 2, -1)
    return torch.softmax(w, 1), ids
)"},
    {"cast_logits_then_softmax_of_the_chosen", R"(
    w, ids = torch.topk(logits.to(6), 2, -1)
    return torch.softmax(w, -1).type_as(x), ids
)"},
    {"flat_view_and_row_of_bias", R"(
    s = torch.softmax(logits, -1)
    ids = torch.topk(s.view([-1, 8]) + self.bias.unsqueeze(0), 2, -1, True, False)[1]
    return s.gather(1, ids) * 6.0, ids
)"},
    {"clamped_sum", R"(
    s = torch.softmax(logits, 1, dtype=6)
    ids = torch.topk(s + self.bias.squeeze(), 2, -1)[1]
    w = torch.gather(s, -1, ids)
    return (w / torch.clamp(w.sum([-1], True), min=0.5)).to(15), ids
)"},
    {"cast_to_the_logits_dtype", R"(
    s = torch.sigmoid(logits)
    ids = torch.topk(s + self.bias, 2, -1)[1]
    w = torch.gather(s, 1, ids).type_as(logits)
    return w / (w.sum([-1], True) + 1e-6) * 1.5, ids
)"},
    {"groups_by_max", kByMax.c_str()},
    {"groups_by_top2", kByTopTwo.c_str()},
    {"groups_of_rows_of_tokens", kRowsOfTokens.c_str()},
    {"groups_of_rows_of_logits", kRowsOfLogits.c_str()},
    {"top_k_of_an_attribute", R"(
    w, ids = torch.topk(torch.softmax(logits, -1), self.top_k, -1)
    return w / w.sum([-1], True), ids
)"},
    {"other_readers", R"(
    p = torch.softmax(logits, -1, dtype=6)
    w, ids = torch.topk(p, 2, -1)
    w = w / w.sum([-1], True)
    return w, ids, logits, p
)"},
    {"an_unknown_step_behind_the_form", R"(
    w, ids = torch.topk(torch.softmax(logits, -1), 2, -1)
    w = w / w.sum([-1], True)
    return torch.sqrt(w) * 2.0, ids
)"},
};

class FuseRouterTest : public ::testing::TestWithParam<Case> {};

TEST_P(FuseRouterTest, KeepsEveryBit) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Module source = Router(GetParam().body, dtype);
    Module fused = Router(GetParam().body, dtype);
    ASSERT_TRUE(Fuse(fused));
    for (const bool ties : {false, true}) {
      at::Tensor x = Random({67, kHidden}, 3);
      if (ties) x = x * 0;
      const auto expected = source.forward({x.to(dtype)}).toTupleRef().elements().vec();
      const auto found = fused.forward({x.to(dtype)}).toTupleRef().elements().vec();
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(at::equal(found[i].toTensor(), expected[i].toTensor())) << "output " << i;
        EXPECT_EQ(found[i].toTensor().scalar_type(), expected[i].toTensor().scalar_type());
      }
    }
  }
}

TEST_P(FuseRouterTest, LeavesNoTopkBehind) {
  const Module fused = Router(GetParam().body, at::kFloat);
  ASSERT_TRUE(Fuse(fused));
  const std::string graph = GraphOf(fused)->toString();
  EXPECT_THAT(graph, HasSubstr("autoep::route"));
  EXPECT_THAT(graph, Not(HasSubstr("aten::topk")));
}

INSTANTIATE_TEST_SUITE_P(Forms, FuseRouterTest, ::testing::ValuesIn(kRouters), [](const auto& each) { return each.param.name; });

TEST(FuseRouterTest, KeepsWhatOthersRead) {
  const Module fused = Router(R"(
    p = torch.softmax(logits, -1)
    w, ids = torch.topk(p, 2, -1)
    return w / w.sum([-1], True), ids, p
)",
                              at::kFloat);
  ASSERT_TRUE(Fuse(fused));
  EXPECT_THAT(GraphOf(fused)->toString(), HasSubstr("aten::softmax"));
  EXPECT_THAT(GraphOf(fused)->toString(), Not(HasSubstr("aten::div")));
}

TEST(FuseRouterTest, EndsWhereTheFormEnds) {
  const Module fused = Router(R"(
    w, ids = torch.topk(torch.softmax(logits, -1), 2, -1)
    return torch.sqrt(w), ids
)",
                              at::kFloat);
  ASSERT_TRUE(Fuse(fused));
  EXPECT_THAT(GraphOf(fused)->toString(), HasSubstr("aten::sqrt"));
}

const Case kOthers[] = {
    {"softmax_over_tokens", R"(
    w, ids = torch.topk(torch.softmax(logits, 0), 2, -1)
    return w / w.sum([-1], True), ids
)"},
    {"smallest", R"(
    w, ids = torch.topk(torch.softmax(logits, -1), 2, -1, False)
    return w / w.sum([-1], True), ids
)"},
    {"another_score", R"(
    w, ids = torch.topk(torch.tanh(logits), 2, -1)
    return w / w.sum([-1], True), ids
)"},
    {"an_op_between", R"(
    w, ids = torch.topk(torch.relu(torch.softmax(logits, -1)), 2, -1)
    return w / w.sum([-1], True), ids
)"},
    {"a_bias_that_is_computed", R"(
    w, ids = torch.topk(torch.softmax(logits, -1) + x.sum(), 2, -1)
    return w / w.sum([-1], True), ids
)"},
    {"scores_written_in_place", R"(
    p = torch.softmax(logits, -1)
    p.mul_(2.0)
    w, ids = torch.topk(p, 2, -1)
    return w, ids
)"},
    {"weights_of_other_scores", R"(
    ids = torch.topk(torch.softmax(logits, -1) + self.bias, 2, -1)[1]
    return torch.gather(torch.sigmoid(logits), 1, ids), ids
)"},
    {"values_and_gathered", R"(
    p = torch.softmax(logits, -1)
    w, ids = torch.topk(p + self.bias, 2, -1)
    return w + torch.gather(p, 1, ids), ids
)"},
    {"a_bare_topk", R"(
    w, ids = torch.topk(logits, 2, -1)
    return w, ids
)"},
    {"groups_of_rows_of_one_size", kRowsOfOneSize.c_str()},
    {"groups_of_rows_of_a_size_twice", kRowsOfASizeTwice.c_str()},
    {"groups_of_rows_of_all_sizes", kRowsOfAll.c_str()},
    {"groups_of_rows_of_another", kRowsOfAnother.c_str()},
    {"groups_of_rows_of_columns", kColumns.c_str()},
    {"groups_of_other_scores", R"(
    s = torch.sigmoid(logits)
    choice = s + self.bias
    group_scores = torch.max(s.view([-1, 4, 2]), -1)[0]
    best = torch.topk(group_scores, 2, -1, True, False)[1]
    kept = torch.zeros_like(group_scores)
    kept = kept.scatter_(1, best, 1)
    mask = kept.unsqueeze(-1).expand([-1, 4, 2]).reshape([-1, 8])
    ids = torch.topk(choice.masked_fill(~mask.to(11), 0.0), 2, -1)[1]
    return torch.gather(s, 1, ids), ids
)"},
};

class OtherRouterTest : public ::testing::TestWithParam<Case> {};

TEST_P(OtherRouterTest, IsLeftAlone) { EXPECT_FALSE(Fuse(Router(GetParam().body, at::kFloat))); }

INSTANTIATE_TEST_SUITE_P(NearMisses, OtherRouterTest, ::testing::ValuesIn(kOthers),
                         [](const auto& each) { return each.param.name; });

// What is normalised in place while another reads it is not one of route's outputs.
TEST(FuseRouterTest, KeepsWeightsThatAnotherReadsBeforeTheyAreWritten) {
  const char* body = R"(
    w, ids = torch.topk(torch.softmax(logits, -1), 2, -1)
    raw = w.view([-1])
    w /= w.sum([-1], True)
    return w, ids, raw
)";
  Module source = Router(body, at::kFloat);
  Module fused = Router(body, at::kFloat);
  Fuse(fused);
  const at::Tensor x = Random({9, kHidden}, 3);
  const auto expected = source.forward({x}).toTupleRef().elements().vec();
  const auto found = fused.forward({x}).toTupleRef().elements().vec();
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(found[i].toTensor(), expected[i].toTensor())) << i;
}

}  // namespace
}  // namespace autoep

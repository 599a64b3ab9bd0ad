// SPDX-License-Identifier: Apache-2.0
// The pipeline: what each pass makes of a model's graphs, leaving edits out, and the invariants.
#include "passes/pipeline.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/testing/file_check.h>

#include <filesystem>

#include "passes/detect/detect.h"
#include "passes/invariants.h"
#include "passes/model/modules.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using testing::MakeBlock;
using testing::MakeStack;
using ::testing::Not;
using torch::jit::testing::FileCheck;

struct Opened {
  MoeModel model;
  Plan plan;
};

Opened Open(const torch::jit::Module& module, int64_t ep_size = 2) {
  auto model = OpenModel(testing::Save(module, testing::TempFolder("in")));
  EXPECT_TRUE(model.ok()) << model.status().message();
  auto plan = BuildPlan(*model, Detect(model->module), ep_size);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return {std::move(*model), std::move(*plan)};
}

PipelineReport RunAll(Opened& opened, const PipelineOptions& options = {}) {
  auto report = RunPipeline(opened.model, opened.plan, options);
  EXPECT_TRUE(report.ok()) << report.status().message();
  return report.ok() ? *report : PipelineReport{};
}

int64_t EditsOf(const PipelineReport& report, const std::string& name) {
  for (const PassReport& pass : report.passes) {
    if (pass.pass == name) return static_cast<int64_t>(pass.edits.size());
  }
  ADD_FAILURE() << "pass " << name << " did not run";
  return -1;
}

torch::jit::Graph& ForwardOf(const MoeModel& model, const std::string& path) {
  return *torch::jit::toGraphFunction(FindModule(model.module, path)->get_method("forward").function()).graph();
}

TEST(RewriteMoeTest, ReplacesTheExpertsAndKeepsTheRouter) {
  Opened opened = Open(MakeBlock({}));
  FileCheck().check("aten::topk")->check_not("autoep::")->check("forward")->run(ForwardOf(opened.model, "").toString() + "forward");
  RunAll(opened, {.passes = {"rewrite-moe"}});
  FileCheck()
      .check("aten::softmax")
      ->check("aten::topk")
      ->check("aten::div")
      ->check_count("autoep::dispatch", 1)
      ->check_count("autoep::experts", 1)
      ->check_count("autoep::combine", 1)
      ->check_not("aten::silu")
      ->check("return")
      ->run(ForwardOf(opened.model, "").toString());
  EXPECT_THAT(ForwardOf(opened.model, "").toString(), Not(HasSubstr("CallMethod")));
}

TEST(RewriteMoeTest, GivesTheBlockItsAttributes) {
  Opened opened = Open(MakeBlock({}));
  RunAll(opened);
  const torch::jit::Module& block = opened.model.module;
  EXPECT_EQ(block.attr("autoep_gate_up").toTensor().sizes(), (std::vector<int64_t>{0, 12, 8}));
  EXPECT_EQ(block.attr("autoep_down").toTensor().sizes(), (std::vector<int64_t>{0, 8, 6}));
  EXPECT_EQ(block.attr("autoep_group").toStringRef(), "");
  EXPECT_EQ(block.attr("autoep_layer").toStringRef(), "#" + opened.plan.digest.substr(0, 16));
  const at::Tensor placement = block.attr("autoep_placement").toTensor();
  EXPECT_EQ(placement.sizes(), (std::vector<int64_t>{4, 1, 2}));
  EXPECT_EQ(placement[3][0][0].item<int64_t>(), 1);
  EXPECT_EQ(placement[3][0][1].item<int64_t>(), 1);
}

TEST(RewriteMoeTest, EditsASharedTypeOnce) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true));
  RunAll(opened);
  const auto first = *FindModule(opened.model.module, "first");
  const auto second = *FindModule(opened.model.module, "second");
  EXPECT_EQ(first.type(), second.type());
  EXPECT_THAT(first.attr("autoep_layer").toStringRef(), HasSubstr("first#"));
  EXPECT_THAT(second.attr("autoep_layer").toStringRef(), HasSubstr("second#"));
}

TEST(RewriteMoeTest, UnsharesWhereOneLayerIsLeftOut) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true));
  const PipelineReport report = RunAll(opened, {.disabled = {{"rewrite-moe", 0}}});
  EXPECT_EQ(report.rewritten, (std::set<size_t>{1}));
  EXPECT_NE(FindModule(opened.model.module, "first")->type(), FindModule(opened.model.module, "second")->type());
  EXPECT_THAT(ForwardOf(opened.model, "first").toString(), Not(HasSubstr("autoep::")));
  EXPECT_THAT(ForwardOf(opened.model, "second").toString(), HasSubstr("autoep::combine"));
}

TEST(FuseRouterTest, ComputesTheRouterByOneOp) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true));
  const PipelineReport report = RunAll(opened, {.disabled = {{"fuse-gate", std::nullopt}}});
  EXPECT_EQ(EditsOf(report, "fuse-router"), 1) << "the blocks share a graph";
  FileCheck()
      .check("aten::linear")
      ->check_count("autoep::route", 1)
      ->check("autoep::dispatch")
      ->check_not("aten::topk")
      ->check("return")
      ->run(ForwardOf(opened.model, "second").toString());
}

TEST(FuseRouterTest, LeavesTheRouterWhereItIsLeftOut) {
  Opened opened = Open(MakeBlock({}));
  RunAll(opened, {.disabled = {{"fuse-router", std::nullopt}}});
  EXPECT_THAT(ForwardOf(opened.model, "").toString(), HasSubstr("aten::topk"));
}

const torch::jit::Node* RouteOf(const torch::jit::Graph& graph) {
  for (const torch::jit::Node* node : graph.nodes()) {
    if (node->kind() == c10::Symbol::fromQualString("autoep::route")) return node;
  }
  return nullptr;
}

TEST(FuseGateTest, PutsTheProductIntoTheRouter) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true));
  EXPECT_EQ(EditsOf(RunAll(opened), "fuse-gate"), 1) << "the blocks share a graph";
  const torch::jit::Graph& graph = ForwardOf(opened.model, "second");
  EXPECT_THAT(graph.toString(), Not(HasSubstr("aten::linear")));
  ASSERT_NE(RouteOf(graph), nullptr);
  EXPECT_EQ(RouteOf(graph)->schema().overload_name(), "linear");
  EXPECT_TRUE(RouteOf(graph)->input(4)->mustBeNone()) << "the logits have the product's own dtype";
}

TEST(FuseGateTest, TakesInTheCastsOfItsOperands) {
  Opened opened = Open(MakeBlock({.dtype = at::kBFloat16, .scores = "torch.sigmoid(torch.linear(x.to(6), self.gate.to(6)))"}));
  RunAll(opened);
  const torch::jit::Graph& graph = ForwardOf(opened.model, "");
  const torch::jit::Node* route = RouteOf(graph);
  ASSERT_NE(route, nullptr);
  EXPECT_EQ(torch::jit::toIValue(route->input(4)), at::IValue(static_cast<int64_t>(at::kFloat)));
  EXPECT_EQ(route->input(0), graph.inputs().at(1)) << "the tokens themselves";
}

TEST(FuseGateTest, LeavesACastOfOneOperandWhereItIs) {
  Opened opened = Open(MakeBlock({.scores = "torch.softmax(torch.linear(x, self.gate.to(6)), 1)"}));
  RunAll(opened);
  const torch::jit::Node* route = RouteOf(ForwardOf(opened.model, ""));
  ASSERT_NE(route, nullptr);
  EXPECT_TRUE(route->input(4)->mustBeNone());
  EXPECT_EQ(route->input(1)->node()->kind(), c10::aten::to);
}

TEST(WidenLogitsTest, GivesTheLogitsTheScoresDtype) {
  const testing::SampleMoe sample{.dtype = at::kBFloat16, .scores = "torch.softmax(torch.linear(x, self.gate), 1, dtype=6)"};
  Opened opened = Open(MakeBlock(sample));
  EXPECT_EQ(EditsOf(RunAll(opened, {.extra = {"widen-logits"}}), "widen-logits"), 1);
  const torch::jit::Node* route = RouteOf(ForwardOf(opened.model, ""));
  ASSERT_NE(route, nullptr);
  EXPECT_EQ(torch::jit::toIValue(route->input(4)), at::IValue(static_cast<int64_t>(at::kFloat)));
}

TEST(WidenLogitsTest, LeavesLogitsThatAreNotCastForTheirScores) {
  Opened opened = Open(MakeBlock({.dtype = at::kBFloat16}));
  EXPECT_EQ(EditsOf(RunAll(opened, {.extra = {"widen-logits"}}), "widen-logits"), 0);
}

TEST(FuseMoeTest, ComputesALayerOfOneRankByOneOp) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true), 1);
  const PipelineReport report = RunAll(opened);
  EXPECT_EQ(EditsOf(report, "fuse-moe"), 1) << "the blocks share a graph";
  const std::string graph = ForwardOf(opened.model, "second").toString();
  FileCheck().check("autoep::route")->check_count("autoep::moe", 1, /*exactly=*/true)->check("return")->run(graph);
  for (const char* op : {"autoep::dispatch", "autoep::experts", "autoep::combine", "autoep_group"}) {
    EXPECT_THAT(graph, Not(HasSubstr(op)));
  }
  EXPECT_EQ(FindModule(opened.model.module, "second")->attr("autoep_group").toStringRef(), "") << "for loaders to set";
}

TEST(FuseMoeTest, GivesTheExpertsDtypeWhereTheSumIsCastToIt) {
  Opened opened = Open(MakeBlock({.dtype = at::kBFloat16}), 1);
  RunAll(opened);
  for (torch::jit::Node* node : ForwardOf(opened.model, "").nodes()) {
    if (node->kind() != c10::Symbol::fromQualString("autoep::moe")) continue;
    EXPECT_EQ(torch::jit::toIValue(node->input(11)), at::IValue(static_cast<int64_t>(at::kBFloat16)));
    return;
  }
  ADD_FAILURE() << "there is no moe";
}

TEST(FuseMoeTest, LeavesThreeOpsOnSeveralRanks) {
  Opened opened = Open(MakeBlock({}), 2);
  EXPECT_EQ(EditsOf(RunAll(opened), "fuse-moe"), 0);
  FileCheck().check("autoep::dispatch")->check("autoep::combine")->run(ForwardOf(opened.model, "").toString());
}

TEST(FuseRanksTest, ComputesALayerOfSeveralRanksByOneOp) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/true), 2);
  EXPECT_EQ(EditsOf(RunAll(opened, {.extra = {"fuse-ranks"}}), "fuse-ranks"), 1) << "the blocks share a graph";
  const std::string graph = ForwardOf(opened.model, "second").toString();
  FileCheck().check("autoep_group")->check_count("autoep::moe", 1, /*exactly=*/true)->check("return")->run(graph);
  for (const char* op : {"autoep::dispatch", "autoep::experts", "autoep::combine"}) EXPECT_THAT(graph, Not(HasSubstr(op)));
}

TEST(FuseRanksTest, LeavesOneRankToFuseMoe) {
  Opened opened = Open(MakeBlock({}), 1);
  const PipelineReport report = RunAll(opened, {.extra = {"fuse-ranks"}});
  EXPECT_EQ(EditsOf(report, "fuse-moe"), 1);
  EXPECT_EQ(EditsOf(report, "fuse-ranks"), 0);
}

TEST(PruneExpertsTest, DropsTheExpertsAndNothingElse) {
  Opened opened = Open(MakeBlock({}));
  RunAll(opened);
  EXPECT_FALSE(opened.model.module.hasattr("experts"));
  EXPECT_TRUE(opened.model.module.hasattr("gate"));
  EXPECT_EQ(opened.model.module.named_parameters().size(), 3);
}

TEST(PruneExpertsTest, DropsAMethodThatOnlyTheOldComputeCalled) {
  Opened opened = Open(MakeBlock({}, /*helper=*/true));
  RunAll(opened);
  EXPECT_FALSE(opened.model.module.find_method("moe"));
  EXPECT_FALSE(opened.model.module.hasattr("experts"));
}

TEST(PipelineTest, LeavesOutWhatIsDisabled) {
  Opened opened = Open(MakeBlock({}));
  const PipelineReport report = RunAll(opened, {.disabled = {{"prune-experts", std::nullopt}}});
  EXPECT_EQ(EditsOf(report, "rewrite-moe"), 1);
  EXPECT_EQ(EditsOf(report, "prune-experts"), 0);
  EXPECT_TRUE(opened.model.module.hasattr("experts"));
}

TEST(PipelineTest, StopsAtTheLimit) {
  Opened opened = Open(MakeStack({}, {.seed = 2}, /*share_type=*/false));
  const PipelineReport report = RunAll(opened, {.limit = 1});
  EXPECT_EQ(report.rewritten, (std::set<size_t>{0}));
}

TEST(PipelineTest, DumpsTheGraphsBetweenPasses) {
  Opened opened = Open(MakeBlock({}));
  const std::string folder = testing::TempFolder("ir");
  RunAll(opened, {.dump_ir = folder});
  EXPECT_TRUE(std::filesystem::exists(folder + "/00-source.ir"));
  int number = 0;
  for (const PassInfo& pass : ListPasses()) {
    if (pass.by_default) EXPECT_TRUE(std::filesystem::exists(fmt::format("{}/{:02}-{}.ir", folder, ++number, pass.name)));
  }
}

TEST(PipelineTest, NamesUnknownPasses) {
  EXPECT_EQ(CheckPassNames({"rewrite-moe"}).code(), Code::kOk);
  EXPECT_THAT(CheckPassNames({"rewrite-mo"}).message(), HasSubstr("did you mean 'rewrite-moe'?"));
  EXPECT_EQ(ParseDisabledPass("rewrite-moe:x").status().code(), Code::kUsage);
  EXPECT_EQ(ParseDisabledPass("rewrite-moe:-1").status().code(), Code::kUsage);
  EXPECT_EQ(*ParseDisabledPass("rewrite-moe:7")->edit, 7);
  EXPECT_FALSE(ParseDisabledPass("prune-experts")->edit.has_value());
}

Status Check(const torch::jit::Module& module) {
  const ObjectIndex index(module);
  return CheckInvariants(index, TakeFingerprint(index));
}

TEST(InvariantsTest, HoldOfAModelAsItIs) { EXPECT_TRUE(Check(MakeBlock({})).ok()); }

TEST(InvariantsTest, FingerprintsTellWhichGraphChanged) {
  torch::jit::Module stack = MakeStack({}, {.seed = 2}, /*share_type=*/false);
  const Fingerprint before = TakeFingerprint(ObjectIndex(stack));
  EXPECT_EQ(TakeFingerprint(ObjectIndex(stack)), before);
  auto& function = torch::jit::toGraphFunction(stack.attr("first").toModule().get_method("forward").function());
  for (torch::jit::Node* node : function.graph()->nodes()) {
    if (node->kind() != c10::prim::Constant || !node->hasAttribute(c10::attr::value)) continue;
    if (node->kindOf(c10::attr::value) != torch::jit::AttributeKind::i) continue;
    node->i_(c10::attr::value, node->i(c10::attr::value) + 1);
    break;
  }
  const Fingerprint after = TakeFingerprint(ObjectIndex(stack));
  EXPECT_EQ(after.types, before.types);
  for (const auto& [each, number] : before.functions) EXPECT_EQ(after.functions.at(each) != number, each == &function);
}

TEST(InvariantsTest, SeeAnAttributeThatIsGone) {
  torch::jit::Module block = MakeBlock({});
  block._ivalue()->unsafeRemoveAttr("gate");
  block.type()->unsafeRemoveAttribute("gate");
  EXPECT_THAT(Check(block).message(), HasSubstr("no such attribute"));
}

TEST(InvariantsTest, SeeAMethodThatIsGone) {
  torch::jit::Module block = MakeBlock({}, /*helper=*/true);
  block.type()->unsafeRemoveMethod("moe");
  EXPECT_THAT(Check(block).message(), HasSubstr("no such method"));
}

TEST(InvariantsTest, SeeAnObjectWithMissingSlots) {
  torch::jit::Module stack = MakeStack({}, {.seed = 2}, /*share_type=*/true);
  stack.attr("second").toModule()._ivalue()->unsafeRemoveSlot(0);
  EXPECT_THAT(Check(stack).message(), HasSubstr("slots"));
}

TEST(InvariantsTest, SeeAnAttributeOfOursThatNothingReads) {
  torch::jit::Module block = MakeBlock({});
  block.register_attribute("autoep_group", c10::StringType::get(), "");
  EXPECT_THAT(Check(block).message(), HasSubstr("no graph reads"));
  block.register_attribute("autoep_placement", c10::StringType::get(), "");
  block.define("def of(self):\n    return self.autoep_placement\n");
  EXPECT_TRUE(Check(block).ok());
}

// A pass that changes a graph and says nothing, or says something and changes nothing.
class Liar : public Pass {
 public:
  explicit Liar(bool changes) : changes_(changes) {}
  Result<Change> Run(MoeModel& model) override {
    if (!changes_) return Change{{"said"}};
    model.module.register_attribute("extra", c10::IntType::get(), 1);
    return Change{};
  }

 private:
  bool changes_;
};

const RegisterPass kSilent({"test-silent", "", 100, false, [](PassContext&) { return std::make_unique<Liar>(true); }});
const RegisterPass kBoasting({"test-boasting", "", 101, false, [](PassContext&) { return std::make_unique<Liar>(false); }});

TEST(PipelineTest, ChecksThatAPassSaysWhatItDoes) {
  Opened opened = Open(MakeBlock({}));
  EXPECT_THAT(RunPipeline(opened.model, opened.plan, {.passes = {"test-boasting"}}).status().message(),
              HasSubstr("the model is the same"));
  EXPECT_THAT(RunPipeline(opened.model, opened.plan, {.passes = {"test-silent"}}).status().message(),
              HasSubstr("no change was reported"));
}

}  // namespace
}  // namespace autoep

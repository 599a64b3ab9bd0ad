// SPDX-License-Identifier: Apache-2.0
// Pass follow-device: what it changes in a graph, where the device comes from, and what it leaves alone.
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/testing/file_check.h>

#include "passes/pipeline.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;

using torch::jit::Module;
using torch::jit::testing::FileCheck;

constexpr char kOwnWeight[] = R"(
def forward(self, x):
    return x * self.weight + torch.arange(x.size(1), device=torch.device("cpu"))
)";

Module Holder(const std::string& code, bool with_weight = true) {
  Module module("Holder");
  if (with_weight) module.register_parameter("weight", at::ones({3}), /*is_buffer=*/false);
  module.define(code);
  return module;
}

torch::jit::Graph& GraphOf(const Module& module) {
  return *torch::jit::toGraphFunction(module.get_method("forward").function()).graph();
}

// The first argument of the call becomes %n = aten::mul(prim::NumToTensor(aten::size(%x, 0)), 1), as a trace has it.
void PassSize(torch::jit::Graph& graph) {
  for (torch::jit::Node* node : graph.nodes()) {
    if (node->kind() != c10::prim::CallMethod) continue;
    const torch::jit::WithInsertPoint here(node);
    torch::jit::Value* size = graph.insert(c10::aten::size, {graph.inputs()[1], 0});
    torch::jit::Value* number = graph.insertNode(graph.create(c10::prim::NumToTensor, {size}))->output();
    node->replaceInput(1, graph.insert(c10::aten::mul, {number, 1}));
    return;
  }
}

struct Followed {
  Module before;
  Module after;
  std::string graph;
  PipelineReport report;
};

Followed Follow(const Module& module) {
  const std::string folder = testing::TempFolder("followed");
  const std::string source = testing::Save(module, folder);
  auto model = OpenModel(source);
  EXPECT_TRUE(model.ok()) << model.status().message();
  auto report = RunPipeline(*model, Plan{}, {.passes = {"follow-device"}});
  EXPECT_TRUE(report.ok()) << report.status().message();
  Module after = torch::jit::load(testing::Save(model->module, folder, "after.pt"));
  const std::string graph = after.get_method("forward").graph()->toString();
  return {torch::jit::load(source), after, graph, *report};
}

TEST(FollowDeviceTest, TakesTheDeviceOfAParameter) {
  Followed followed = Follow(Holder(kOwnWeight));
  FileCheck()
      .check("prim::GetAttr[name=\"weight\"]")
      ->check("prim::device")
      ->check_not("value=\"cpu\"")
      ->check("aten::arange")
      ->run(followed.graph);
  const at::Tensor x = at::ones({2, 3});
  EXPECT_TRUE(at::equal(followed.after.forward({x}).toTensor(), followed.before.forward({x}).toTensor()));
  ASSERT_EQ(followed.report.passes.at(0).edits.size(), 1);
  EXPECT_THAT(followed.report.passes[0].edits[0], HasSubstr("1 device and 0 constants follow the device of weight"));
}

TEST(FollowDeviceTest, TakesTheDeviceOfAnArgumentWhereNothingIsHeld) {
  Followed followed =
      Follow(Holder("def forward(self, n: int, x):\n    return x + torch.zeros([n], device=torch.device('cpu'))\n", false));
  FileCheck().check("prim::device(%x")->check_not("value=\"cpu\"")->check("return")->run(followed.graph);
}

TEST(FollowDeviceTest, TakesNoDeviceFromASize) {
  Module inner("Inner");
  inner.define("def forward(self, n, x):\n    return torch.arange(int(n), device=torch.device('cpu')) + x\n");
  Module outer("Outer");
  outer.register_module("inner", inner);
  outer.define("def forward(self, x):\n    return self.inner.forward(x, x)\n");
  PassSize(GraphOf(outer));
  Followed followed = Follow(outer);
  const std::string graph = followed.after.attr("inner").toModule().get_method("forward").graph()->toString();
  FileCheck().check("prim::device(%x")->check_not("value=\"cpu\"")->check("return")->run(graph);
}

TEST(FollowDeviceTest, MovesConstantsThatHaveDimensions) {
  Module module = Holder("def forward(self, x):\n    return x * self.weight + x\n");
  torch::jit::Graph& graph = GraphOf(module);
  torch::jit::Node* sum = graph.outputs()[0]->node();
  const torch::jit::WithInsertPoint here(sum);
  sum->replaceInput(1, graph.insertConstant(at::ones({3})));
  Followed followed = Follow(module);
  FileCheck().check("prim::device")->check("aten::to")->check("aten::add")->run(followed.graph);
  const at::Tensor x = at::ones({2, 3});
  EXPECT_TRUE(at::equal(followed.after.forward({x}).toTensor(), followed.before.forward({x}).toTensor()));
}

TEST(FollowDeviceTest, LeavesOtherDevicesAlone) {
  Followed followed = Follow(Holder("def forward(self, x):\n    return x + torch.ones([3], device=torch.device('meta'))\n"));
  EXPECT_THAT(followed.graph, HasSubstr("value=\"meta\""));
  EXPECT_TRUE(followed.report.passes.at(0).edits.empty());
}

TEST(FollowDeviceTest, SaysWhatHasNoDeviceToFollow) {
  Followed followed = Follow(Holder("def forward(self, n: int):\n    return torch.ones([n], device=torch.device('cpu'))\n", false));
  EXPECT_THAT(followed.graph, HasSubstr("value=\"cpu\""));
  ASSERT_EQ(followed.report.limits.size(), 1);
  EXPECT_THAT(followed.report.limits[0], HasSubstr("runs on the CPU alone"));
}

}  // namespace
}  // namespace autoep

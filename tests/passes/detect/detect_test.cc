// SPDX-License-Identifier: Apache-2.0
// The walk over modules: which one is the block, and how refusals travel.
#include "passes/detect/detect.h"

#include <gtest/gtest.h>

#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

torch::jit::Module Parent(const torch::jit::Module& child, const std::string& name) {
  torch::jit::Module parent("__torch__.tests.Parent", child._ivalue()->compilation_unit(), /*shouldMangle=*/true);
  parent.register_module(name, child);
  parent.define("def forward(self, hidden: Tensor) -> Tensor:\n    return self." + name + ".forward(hidden) + hidden\n");
  return parent;
}

TEST(Detect, TheLowestModuleThatHoldsRouterAndExpertsIsTheBlock) {
  const Detection detection = Detect(Parent(Parent(MakeBlock(LoopSource(SparseExpert())), "mlp"), "layer"));
  EXPECT_TRUE(detection.refusals.empty());
  ASSERT_EQ(detection.layers.size(), 1u);
  EXPECT_EQ(detection.layers[0].path, "layer.mlp");
  EXPECT_EQ(detection.layers[0].class_name, "Block");
  EXPECT_EQ(detection.layers[0].family, "unknown");
  EXPECT_EQ(detection.layers[0].tensors[1].parts[0].tensor, "layer.mlp.w2_0");
}

TEST(Detect, ADenseModelHasNeitherLayersNorRefusals) {
  const Detection detection =
      Detect(Parent(MakeBlock("def forward(self, hidden: Tensor) -> Tensor:\n    return torch.linear(hidden, self.gate)\n"), "mlp"));
  EXPECT_TRUE(detection.layers.empty());
  EXPECT_TRUE(detection.refusals.empty());
}

TEST(Detect, ARefusalNamesTheBlockOnce) {
  const std::string source = Replace(LoopSource(SparseExpert()), "ids == 4", "ids == 3");
  const Detection detection = Detect(Parent(Parent(MakeBlock(source), "mlp"), "layer"));
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_EQ(detection.refusals[0].path, "layer.mlp");
}

TEST(Detect, ARouterWithoutExpertsIsReportedWhereItStands) {
  const std::string source = "def forward(self, hidden: Tensor) -> Tensor:\n"
                             "    w, ids = torch.topk(torch.softmax(torch.linear(hidden, self.gate), -1), 2, -1)\n    return w\n";
  const Detection detection = Detect(Parent(MakeBlock(source), "gate"));
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_EQ(detection.refusals[0].path, "gate");
}

TEST(Detect, DoesNotChangeTheModel) {
  const torch::jit::Module model = Parent(MakeBlock(GroupedMmSource()), "mlp");
  const std::string before = model.dump_to_str(true, false, false);
  EXPECT_EQ(Detect(model).layers.size(), 1u);
  EXPECT_EQ(model.dump_to_str(true, false, false), before);
}

}  // namespace
}  // namespace autoep::testing

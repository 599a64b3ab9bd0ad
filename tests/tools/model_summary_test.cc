// SPDX-License-Identifier: Apache-2.0
// Counting what a module holds.
#include "tools/model_summary.h"

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

namespace autoep {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(ModelSummaryTest, CountsNodesInNestedBlocksButNoConstants) {
  torch::jit::Module module("m");
  module.define("def forward(self, x):\n  if bool(x.sum() > 0):\n    x = x + x\n  return x\n");
  // sum, gt, Bool, If, add
  EXPECT_EQ(Summarize(module).nodes, 5);
}

TEST(ModelSummaryTest, ATensorUnderTwoNamesCountsOnce) {
  torch::jit::Module child("child");
  const at::Tensor weight = at::zeros({4, 8});
  child.register_parameter("weight", weight, /*is_buffer=*/false);
  torch::jit::Module module("m");
  module.register_parameter("tied", weight, /*is_buffer=*/false);
  module.register_parameter("other", at::zeros({2}), /*is_buffer=*/false);
  module.register_buffer("steps", at::zeros({3}, at::kLong));
  module.register_module("child", child);
  const ModelSummary summary = Summarize(module);
  EXPECT_EQ(summary.parameters, 2);
  EXPECT_EQ(summary.parameter_bytes, (4 * 8 + 2) * 4);
  EXPECT_EQ(summary.buffers, 1);
  EXPECT_EQ(summary.buffer_bytes, 3 * 8);
  EXPECT_EQ(summary.TensorBytes(), (4 * 8 + 2) * 4 + 3 * 8);
}

TEST(ModelSummaryTest, EmptyPlaceholdersAreParametersWithoutBytes) {
  torch::jit::Module module("m");
  module.register_parameter("a", at::zeros({0, 4}), /*is_buffer=*/false);
  module.register_parameter("b", at::zeros({0, 4}), /*is_buffer=*/false);
  EXPECT_EQ(Summarize(module).parameters, 2);
  EXPECT_EQ(Summarize(module).parameter_bytes, 0);
}

TEST(ModelSummaryTest, EpOpsStandWithTheirModule) {
  torch::jit::Module block("block");
  block.define("def forward(self, x):\n  return x + x\n");
  const auto graph = torch::jit::toGraphFunction(block.get_method("forward").function()).graph();
  graph->prependNode(graph->create(c10::Symbol::fromQualString("autoep::dispatch"), 1));
  torch::jit::Module module("m");
  module.register_module("block", block);
  const ModelSummary summary = Summarize(module);
  EXPECT_THAT(summary.ep_ops, ElementsAre(Pair("block", ElementsAre(Pair("dispatch", 1)))));
  EXPECT_EQ(summary.EpOpCount(), 1);
}

}  // namespace
}  // namespace autoep

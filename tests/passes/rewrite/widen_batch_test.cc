// SPDX-License-Identifier: Apache-2.0
// Pass widen-batch: which reads bind a model to a batch of 1, and what it makes of them.
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/serialization/import.h>

#include "passes/pipeline.h"
#include "passes/rewrite/batch_binding.h"
#include "tests/passes/replace.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using testing::Replace;
using torch::jit::Module;

// As the mask code of transformers 5 does after a trace with batch 1.
constexpr char kMask[] = R"(
def forward(self, x):
    positions = torch.arange(x.size(1)).unsqueeze(0)
    steps = torch.diff(positions, 1, -1, positions[:, 0:1] - 1)
    packed = torch.cumsum(steps != 1, -1) + positions
    b = torch.arange(x.size(0)).unsqueeze(1)
    return packed[b, torch.arange(x.size(1)).unsqueeze(0)]
)";

Module Holder(const std::string& code) {
  Module module("Holder");
  module.define(code);
  return module;
}

at::Tensor Call(Module module, int64_t batch) { return module.forward({at::zeros({batch, 4})}).toTensor(); }

TEST(WidenBatch, ReadsTheOneRowForEverySequence) {
  const std::string folder = testing::TempFolder("widened");
  const std::string source = testing::Save(Holder(kMask), folder);
  auto model = OpenModel(source);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const auto report = RunPipeline(*model, Plan{}, {.passes = {"widen-batch"}});
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_EQ(report->passes[0].edits.size(), 1u);
  EXPECT_THAT(report->passes[0].edits[0], HasSubstr("aten::index"));
  Module before = torch::jit::load(source);
  EXPECT_ANY_THROW(Call(before, 3));
  Module after = torch::jit::load(testing::Save(model->module, folder, "widened.pt"));
  EXPECT_TRUE(at::equal(Call(after, 1), Call(before, 1)));
  const at::Tensor three = Call(after, 3);
  EXPECT_EQ(three.sizes(), (std::vector<int64_t>{3, 4}));
  for (int64_t row = 0; row < 3; ++row) EXPECT_TRUE(at::equal(three[row], Call(before, 1)[0]));
  EXPECT_TRUE(FindBatchBindings(after).empty());
}

TEST(WidenBatch, LeftOutIsALimit) {
  auto model = OpenModel(testing::Save(Holder(kMask), testing::TempFolder("bound")));
  ASSERT_TRUE(model.ok());
  const auto report = RunPipeline(*model, Plan{}, {.passes = {"widen-batch"}, .disabled = {{"widen-batch", std::nullopt}}});
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_EQ(report->limits.size(), 1u);
  EXPECT_THAT(report->limits[0], HasSubstr("a batch of 1 only"));
}

TEST(WidenBatch, LeavesOtherReadsAlone) {
  EXPECT_EQ(FindBatchBindings(Holder(kMask)).size(), 1u);
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"torch.arange(x.size(1)).unsqueeze(0)\n", "x.cumsum(-1)\n"},                          // a row for each sequence
           {"torch.arange(x.size(1)).unsqueeze(0)\n", "torch.arange(x.size(1)).unsqueeze(1)\n"},  // a column
           {"torch.arange(x.size(0))", "torch.arange(x.size(1))"},                                // not the batch
           {"steps != 1, -1) + positions", "steps != 1, -1) + x"},                                // grows with the batch
           {"torch.cumsum(steps != 1, -1)", "torch.cumsum(steps != 1, 0)"},
       }) {
    EXPECT_TRUE(FindBatchBindings(Holder(Replace(kMask, from, to))).empty()) << to;
  }
}

}  // namespace
}  // namespace autoep

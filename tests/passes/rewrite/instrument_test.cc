// SPDX-License-Identifier: Apache-2.0
// InstrumentRoutes: the recorded routes are the model's own, and its answers stay bit for bit.
#include "passes/rewrite/instrument.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/serialization/import.h>

#include "passes/detect/detect.h"
#include "plugin/ops/recorder.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

TEST(InstrumentRoutesTest, RecordsEveryLayerUnderItsPath) {
  const testing::SampleMoe sample;
  const std::string folder = testing::TempFolder("in");
  const std::string source = testing::Save(testing::MakeStack(sample, {.seed = 2}, /*share_type=*/true), folder);
  auto model = OpenModel(source);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const Status status = InstrumentRoutes(*model, Detect(model->module));
  ASSERT_TRUE(status.ok()) << status.message();
  torch::jit::Module instrumented = torch::jit::load(testing::Save(model->module, folder, "instrumented.pt"));
  const at::Tensor x = testing::Tokens(sample, 7);
  const at::Tensor expected = torch::jit::load(source).forward({x}).toTensor();
  const ops::Recorder recorder;
  for (int run = 0; run < 3; ++run) EXPECT_TRUE(at::equal(instrumented.forward({x}).toTensor(), expected));
  const auto calls = recorder.calls();
  ASSERT_EQ(calls.size(), 6);
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_EQ(calls[i].layer, i % 2 == 0 ? "first" : "second");
    EXPECT_EQ(calls[i].ids.sizes(), (std::vector<int64_t>{7, 2}));
    EXPECT_TRUE(calls[i].weights.sum(1).allclose(at::ones({7})));
  }
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Which reads bind a model to some lengths of a sequence, and which do not.
#include "passes/rewrite/length_binding.h"

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "passes/pipeline.h"
#include "tests/passes/replace.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using testing::Replace;
using torch::jit::Module;

// A scan that a trace on 3 tokens unrolled.
constexpr char kScan[] = R"(
def forward(self, x):
    h = x.transpose(1, 2)[:, :, 0:x.size(1)].unsqueeze(3) * 2.0
    state = h[:, :, 0]
    state = state * 0.5 + h[:, :, 1]
    return state * 0.5 + h[:, :, 2]
)";

constexpr char kTable[] = R"(
def forward(self, x):
    return x * self.table[:, 0:x.size(1) - 2]
)";

Module Holder(const std::string& code) {
  Module module("Holder");
  module.register_buffer("table", at::zeros({1, 16, 4}));
  module.define(code);
  return module;
}

TEST(LengthBinding, AnUnrolledLoop) {
  const auto found = FindLengthBindings(Holder(kScan));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(DescribeLengths(found[0]), "a length of 3 only");
  EXPECT_THAT(found[0].text, HasSubstr("aten::select"));
}

TEST(LengthBinding, AnUnrolledLoopBehindACall) {
  Module inner("Inner");
  inner.define("def forward(self, y):\n    return torch.silu(y)\n");
  Module module("Holder");
  module.register_module("act", inner);
  module.define(Replace(kScan, "x.transpose(1, 2)[:, :, 0:x.size(1)]", "self.act.forward(x.transpose(1, 2)[:, :, 0:x.size(1)])"));
  EXPECT_EQ(FindLengthBindings(module).size(), 1u);
}

TEST(LengthBinding, AStoredTable) {
  const auto found = FindLengthBindings(Holder(kTable));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(DescribeLengths(found[0]), "lengths from 3 to 18");
}

TEST(LengthBinding, OtherReads) {
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"0:x.size(1)", "0:x.size(2)"},     // not the length
           {"0:x.size(1)", "0:3"},             // a constant
           {"h[:, :, 2]", "h[:, :, 3]"},       // not all entries
           {".unsqueeze(3)", ".unsqueeze(2)"}  // entries of another dimension
       }) {
    EXPECT_TRUE(FindLengthBindings(Holder(Replace(kScan, from, to))).empty()) << to;
  }
  EXPECT_TRUE(FindLengthBindings(Holder(Replace(kTable, "x.size(1)", "x.size(2)"))).empty());
  EXPECT_TRUE(FindLengthBindings(Holder(Replace(kTable, "self.table", "x"))).empty());
}

TEST(LengthBinding, IsALimitOfWhatIsConverted) {
  auto model = OpenModel(testing::Save(Holder(kScan), testing::TempFolder("bound_to_lengths")));
  ASSERT_TRUE(model.ok()) << model.status().message();
  PipelineOptions options;
  options.passes = {"report-lengths"};
  const auto report = RunPipeline(*model, Plan{}, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_EQ(report->limits.size(), 1u);
  EXPECT_THAT(report->limits[0], HasSubstr("it serves a length of 3 only"));
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Before and after a conversion, in both layouts.
#include "tools/convert_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tools/converted_report.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;

BeforeAfter MakeReport(const std::string& layout) {
  contract::ManifestTensor tensor;
  tensor.role = "gate_up";
  tensor.dtype = "F32";
  tensor.pieces = {{0, {4, 2}, 1000, ""}, {1, {4, 2}, 1000, ""}};
  contract::ManifestLayer layer;
  layer.path = "mlp";
  layer.block = "mlp";
  layer.num_experts = 8;
  layer.tensors = {tensor};
  BeforeAfter report;
  report.manifest.layout = layout;
  report.manifest.ep_size = 2;
  report.manifest.plan = "0123456789abcdef";
  report.manifest.layers = {layer};
  report.expert_bytes = 2000;
  report.before.parameter_bytes = 2500;
  report.after.parameter_bytes = layout == "shared" ? 500 : 1500;
  report.after.ep_ops["mlp"] = {{"combine", 1}, {"dispatch", 2}};
  return report;
}

TEST(ConvertReportTest, ARankHoldsItsShareAndTheRest) {
  for (const char* layout : {"shared", "per-rank"}) {
    const BeforeAfter report = MakeReport(layout);
    EXPECT_EQ(report.ReplicatedBytes(), 500) << layout;
    EXPECT_EQ(report.RankBytes(1), 1500) << layout;
  }
}

TEST(ConvertReportTest, TheTableComparesBeforeWithOneRank) {
  Console console;
  console.SetColor(When::kNever);
  const std::string table = BeforeAfterTable(MakeReport("shared"), console);
  EXPECT_THAT(table, HasSubstr("EP ops                    0              3\n"));
  EXPECT_THAT(table, HasSubstr("expert bytes        2.0 KiB         1000 B\n"));
  EXPECT_THAT(table, HasSubstr("other tensor bytes    500 B          500 B\n"));
}

TEST(ConvertReportTest, TheLastLineNamesLayersExpertsRanksAndPlan) {
  EXPECT_EQ(ConvertedSentence(MakeReport("shared").manifest), "1 layer, 8 experts -> 2 ranks, 1000 B of experts a rank, plan 0123456789ab");
}

TEST(ConvertReportTest, OpsWithTheirCounts) {
  EXPECT_EQ(OpsText({{"combine", 1}, {"dispatch", 2}}), "dispatch x2, combine");
  EXPECT_EQ(OpsText({}), "none");
}

TEST(ConvertReportTest, JsonHasBothSides) {
  const Json json = BeforeAfterJson(MakeReport("shared"));
  EXPECT_EQ(json["before"]["parameter_bytes"], 2500);
  EXPECT_EQ(json["after"]["ep_ops"], 3);
  EXPECT_EQ(json["expert_bytes_by_rank"], Json({1000, 1000}));
}

}  // namespace
}  // namespace autoep

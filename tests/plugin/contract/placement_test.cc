// SPDX-License-Identifier: Apache-2.0
// Placement arithmetic, and the table of activation names.
#include "plugin/contract/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "plugin/contract/activation.h"
#include "tests/plugin/io/status_matchers.h"

namespace autoep::contract {
namespace {

using ::testing::ElementsAre;

TEST(Placement, LinearIsContiguous) {
  const Result<Placement> placement = LinearPlacement(6, 3);
  ASSERT_THAT(placement, IsOk());
  EXPECT_THAT(placement->experts, ElementsAre(ExpertSlot{0, 0}, ExpertSlot{0, 1}, ExpertSlot{1, 0}, ExpertSlot{1, 1},
                                              ExpertSlot{2, 0}, ExpertSlot{2, 1}));
  EXPECT_THAT(placement->ExpertsOf(1), ElementsAre(2, 3));
  EXPECT_THAT(CheckPlacement(*placement), IsOk());
}

TEST(Placement, SizesThatDoNotDivideNameThoseThatDo) {
  for (const int64_t size : {-2, 0, 4, 5, 7, 12}) {
    EXPECT_THAT(LinearPlacement(6, size), StatusIs(Code::kPlan, "sizes that work: 1, 2, 3, 6")) << size;
  }
  EXPECT_THAT(LinearPlacement(0, 1), StatusIs(Code::kPlan, "at least 1"));
  EXPECT_THAT(PossibleEpSizes(8), ElementsAre(1, 2, 4, 8));
}

TEST(Placement, ExpertsOfFollowsTheSlots) {
  const Placement placement{2, {{1, 1}, {0, 0}, {1, 0}, {0, 1}}};
  EXPECT_THAT(CheckPlacement(placement), IsOk());
  EXPECT_THAT(placement.ExpertsOf(0), ElementsAre(1, 3));
  EXPECT_THAT(placement.ExpertsOf(1), ElementsAre(2, 0));
}

TEST(Placement, EverySlotIsUsedOnce) {
  EXPECT_THAT(CheckPlacement({2, {{0, 0}, {0, 1}, {1, 0}, {0, 1}}}),
              StatusIs(Code::kPlan, "experts 1 and 3 are both placed on rank 0, slot 1"));
  EXPECT_THAT(CheckPlacement({2, {{0, 0}, {2, 0}}}), StatusIs(Code::kPlan, "expert 1 is placed on rank 2"));
  EXPECT_THAT(CheckPlacement({2, {{0, 0}, {1, 1}}}), StatusIs(Code::kPlan, "expert 1 is placed on rank 1, slot 1"));
  EXPECT_THAT(CheckPlacement({2, {{-1, 0}, {1, 0}}}), StatusIs(Code::kPlan, "expert 0 is placed on rank -1"));
  EXPECT_THAT(CheckPlacement({2, {{0, 0}, {1, 0}, {0, 1}}}), StatusIs(Code::kPlan, "same number"));
  EXPECT_THAT(CheckPlacement({1, {}}), StatusIs(Code::kPlan, "0 experts"));
}

TEST(Activation, EveryNameHasASpecOfItsOwn) {
  std::set<std::tuple<Activation, bool, double>> specs;
  for (const char* name : {"silu_gated", "gelu_gated", "gelu_tanh_gated", "relu_gated", "silu", "gelu", "gelu_tanh", "relu",
                           "relu_squared", "clamped_swiglu", "limited_swiglu"}) {
    const auto spec = ParseActivation(name);
    ASSERT_TRUE(spec.has_value()) << name;
    EXPECT_TRUE(specs.emplace(spec->kind, spec->gated, spec->shift).second) << name;
    EXPECT_EQ(spec->gated, std::string_view(name).ends_with("_gated") || std::string_view(name).ends_with("swiglu"));
  }
  EXPECT_FALSE(ParseActivation("SiLU").has_value());
  EXPECT_FALSE(ParseActivation("").has_value());
}

}  // namespace
}  // namespace autoep::contract

// SPDX-License-Identifier: Apache-2.0
// Steps and their groups by hand, and when the model wants how many.
#include "plugin/comm/groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int64_t> Sizes(const std::vector<Group>& groups) {
  std::vector<int64_t> sizes;
  int64_t step = 1;
  for (const Group& group : groups) {
    EXPECT_EQ(group.begin, step);
    step = group.end;
    sizes.push_back(group.end - group.begin);
  }
  return sizes;
}

// As many rows from each rank to each.
Traffic Even(int64_t ranks, int64_t rows) {
  return Traffic(std::vector<std::vector<int64_t>>(ranks, std::vector<int64_t>(ranks, rows)));
}

// So many seconds for one go, and for each row.
Seconds Takes(double once, double row) {
  return [=](int64_t rows) { return rows == 0 ? 0 : once + rows * row; };
}

TEST(Groups, WhoIsAnsweredAtAStepIsAnsweredByThisRank) {
  for (int64_t rank = 0; rank < 5; ++rank) {
    for (int64_t step = 1; step < 5; ++step) {
      EXPECT_NE(SourceAt(rank, step, 5), rank);
      EXPECT_EQ(AnswererAt(SourceAt(rank, step, 5), step, 5), rank);
    }
  }
  EXPECT_THAT(SourcesOf({1, 4}, 2, 4), ElementsAre(3, 0, 1));
}

TEST(Groups, RowsLieInTheOrderOfSteps) {
  const Traffic traffic({{1, 2, 3}, {4, 5, 6}, {7, 8, 9}});
  // Rank 1: 8 from rank 2, then 2 from rank 0.
  EXPECT_EQ(StepBegin(traffic, 1, 1), 0);
  EXPECT_EQ(StepBegin(traffic, 1, 2), 8);
  EXPECT_EQ(StepBegin(traffic, 1, 3), traffic.Coming(1));
}

TEST(Groups, TheLastIsOneStep) {
  EXPECT_THAT(Sizes(GroupSteps(2, 1)), ElementsAre(1));
  EXPECT_THAT(Sizes(GroupSteps(4, 1)), ElementsAre(3));
  EXPECT_THAT(Sizes(GroupSteps(4, 2)), ElementsAre(2, 1));
  EXPECT_THAT(Sizes(GroupSteps(4, 3)), ElementsAre(1, 1, 1));
  EXPECT_THAT(Sizes(GroupSteps(8, 4)), ElementsAre(2, 2, 2, 1));
}

// 8192 rows of 4 KiB take 112 us on the link.
TEST(Groups, AsManyAsPay) {
  const auto best = [](const Traffic& traffic, const Seconds& seconds) { return Sizes(BestGroups(traffic, 4096, 4096, seconds)); };
  EXPECT_THAT(best(Even(4, 8192), Takes(0, 8e-9)), ElementsAre(1, 1, 1));  // the link is busy all the time
  EXPECT_THAT(best(Even(4, 8192), Takes(0, 50e-9)), ElementsAre(2, 1));
  EXPECT_THAT(best(Even(4, 8192), Takes(50e-6, 50e-9)), ElementsAre(2, 1));
  EXPECT_THAT(best(Even(4, 16384), Takes(460e-6, 50e-9)), ElementsAre(3));
  EXPECT_THAT(best(Even(4, 16384), Takes(500e-6, 50e-9)), IsEmpty());
  EXPECT_THAT(best(Even(4, 128), Takes(0, 50e-9)), IsEmpty());
  EXPECT_THAT(best(Even(2, 8192), Takes(0, 50e-9)), ElementsAre(1));
}

TEST(Groups, NoneWhereNothingTravels) {
  EXPECT_THAT(BestGroups(Traffic({{1000000, 0}, {0, 1000000}}), 4096, 4096, Takes(0, 0)), IsEmpty());
  EXPECT_THAT(BestGroups(Even(1, 1000000), 4096, 4096, Takes(0, 0)), IsEmpty());
}

// All rows come to one rank: nothing travels beside the own ones.
TEST(Groups, ByTheRankThatTakesLongest) {
  const Traffic traffic({{1, 0, 0, 0}, {8192, 0, 0, 0}, {8192, 0, 0, 0}, {8192, 0, 0, 0}});
  EXPECT_THAT(Sizes(BestGroups(traffic, 4096, 4096, Takes(0, 50e-9))), ElementsAre(1, 1, 1));
  EXPECT_THAT(BestGroups(traffic, 4096, 4096, Takes(300e-6, 50e-9)), IsEmpty());
}

}  // namespace
}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// Where rows lie, for three ranks by hand.
#include "plugin/comm/traffic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep::comm {
namespace {

using ::testing::ElementsAre;

const Traffic& Example() {
  static const Traffic traffic({{1, 2, 3}, {4, 5, 6}, {7, 8, 9}});
  return traffic;
}

TEST(Traffic, SendBuffersHoldTheOthersInOrderThenOwn) {
  // Rank 1: 4 for rank 0, 6 for rank 2, 5 of its own.
  EXPECT_EQ(Example().SendBegin(1, 0), 0);
  EXPECT_EQ(Example().SendBegin(1, 2), 4);
  EXPECT_EQ(Example().SendBegin(1, 1), 10);
  EXPECT_EQ(Example().Away(1), 10);
  EXPECT_EQ(Example().Sent(1), 15);
  EXPECT_THAT(Example().SendSizes(1), ElementsAre(4, 0, 6));
}

TEST(Traffic, ReceiveBuffersAreLaidOutLikewiseBySource) {
  // Rank 2: 3 from rank 0, 6 from rank 1, 9 of its own.
  EXPECT_EQ(Example().ReceiveBegin(0, 2), 0);
  EXPECT_EQ(Example().ReceiveBegin(1, 2), 3);
  EXPECT_EQ(Example().ReceiveBegin(2, 2), 9);
  EXPECT_EQ(Example().Coming(2), 9);
  EXPECT_EQ(Example().Received(2), 18);
  EXPECT_THAT(Example().ReceiveSizes(2), ElementsAre(3, 6, 0));
}

TEST(Traffic, BackIsWhatWasReceived) {
  const Traffic back = Example().Back();
  EXPECT_EQ(back.Rows(2, 0), 3);
  for (int64_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(back.Sent(rank), Example().Received(rank));
    EXPECT_EQ(back.SendBegin(rank, 1), Example().ReceiveBegin(1, rank));
  }
}

TEST(Traffic, OwnRowsDoNotTravel) {
  EXPECT_FALSE(Traffic({{5, 0}, {0, 7}}).Travels());
  EXPECT_TRUE(Traffic({{0, 0}, {1, 0}}).Travels());
}

}  // namespace
}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// EP blocks and EDP strides, as tables.
#include "plugin/comm/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep::comm {
namespace {

using Groups = std::vector<std::vector<int64_t>>;
using ::testing::HasSubstr;

struct Case {
  int64_t world, ep;
  Groups ep_groups, edp_groups;
};

TEST(Topology, GroupsAreBlocksAndStrides) {
  const std::vector<Case> cases = {
      {1, 1, {{0}}, {{0}}},
      {4, 1, {{0}, {1}, {2}, {3}}, {{0, 1, 2, 3}}},
      {4, 2, {{0, 1}, {2, 3}}, {{0, 2}, {1, 3}}},
      {4, 4, {{0, 1, 2, 3}}, {{0}, {1}, {2}, {3}}},
      {6, 3, {{0, 1, 2}, {3, 4, 5}}, {{0, 3}, {1, 4}, {2, 5}}},
  };
  for (const Case& c : cases) {
    const Result<Topology> topology = MakeTopology(c.world, c.ep);
    ASSERT_TRUE(topology.ok());
    EXPECT_EQ(topology->EpGroups(), c.ep_groups) << c.world << " " << c.ep;
    EXPECT_EQ(topology->EdpGroups(), c.edp_groups) << c.world << " " << c.ep;
  }
}

TEST(Topology, RankInItsGroup) {
  const Result<Topology> topology = MakeTopology(8, 4);
  ASSERT_TRUE(topology.ok());
  for (int64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(topology->EpGroups()[topology->EpGroupOf(rank)][topology->EpRankOf(rank)], rank);
  }
}

TEST(Topology, SizesThatDoNotFitNameThoseThatDo) {
  for (const int64_t ep : {-1, 0, 4, 12}) {
    const Result<Topology> topology = MakeTopology(6, ep);
    ASSERT_FALSE(topology.ok()) << ep;
    EXPECT_EQ(topology.status().code(), Code::kPlugin);
    EXPECT_THAT(topology.status().message(), HasSubstr("1, 2, 3, 6"));
  }
  EXPECT_FALSE(MakeTopology(0, 1).ok());
}

}  // namespace
}  // namespace autoep::comm

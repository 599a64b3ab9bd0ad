// SPDX-License-Identifier: Apache-2.0
// The tiles of a grouped product and of its weights' gradient, on the host: every row of every group by every weight tile, once.
#include "plugin/ops/grouped/schedule.cuh"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "plugin/ops/grouped/gradient_tiles.cuh"

namespace autoep::ops::cuda::hopper {
namespace {

// What the device has in shared memory.
struct GroupTable {
  std::vector<int> ends, first;

  GroupTable(const std::vector<int>& rows, int tile_rows, int wide_rows) : first(1, 0) {
    int end = 0;
    for (const int count : rows) {
      ends.push_back(end += count);
      first.push_back(first.back() + TilesOf(count, tile_rows, wide_rows));
    }
  }

  Groups View() { return {ends.data(), first.data()}; }
};

TEST(Schedule, AGroupIsAsFewTilesAsWideOnesHold) {
  for (const auto& [rows, tiles] : std::vector<std::pair<int, int>>{
           {0, 0}, {1, 1}, {256, 1}, {257, 1}, {288, 1}, {289, 2}, {576, 2}, {577, 3}, {864, 3}, {865, 4}, {1024, 4}, {1025, 5}}) {
    EXPECT_EQ(TilesOf(rows, kMostRows, kWideRows), tiles) << rows;
  }
  EXPECT_EQ(TilesOf(257, kMostRows, kMostRows), 2) << "without wide tiles";
}

// How often each row of a group is computed with each weight tile, by all clusters' first blocks.
void CheckSchedule(const std::vector<int>& rows, int tile_rows, int wide_rows, int weight_tiles, int cluster_size, int clusters) {
  GroupTable table(rows, tile_rows, wide_rows);
  const Groups groups = table.View();
  std::vector<std::vector<int>> times((weight_tiles + cluster_size - 1) / cluster_size, std::vector<int>(table.ends.back()));
  for (int number = 0; number < clusters; ++number) {
    const Schedule schedule(groups, static_cast<int>(rows.size()), weight_tiles, {cluster_size, 0, number, clusters});
    for (int at = schedule.First(); at < schedule.Count(); at += schedule.Clusters()) {
      const Tile tile = schedule.Get(at);
      ASSERT_GT(tile.rows, 0) << "it would be the end";
      ASSERT_LE(tile.rows, std::max(tile_rows, wide_rows));
      ASSERT_EQ((tile.begin - groups.Begin(tile.slot)) % kGranule, 0);
      ASSERT_GE(tile.begin, groups.Begin(tile.slot));
      ASSERT_LE(tile.begin + tile.rows, groups.ends[tile.slot]);
      ASSERT_EQ(tile.weight_tile % cluster_size, 0);
      for (int row = 0; row < tile.rows; ++row) ++times.at(tile.weight_tile / cluster_size).at(tile.begin + row);
    }
  }
  for (const auto& of_weight_tile : times) {
    for (const int count : of_weight_tile) ASSERT_EQ(count, 1);
  }
}

TEST(Schedule, EveryRowMeetsEveryWeightTileOnce) {
  std::mt19937 random(7);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  for (int round = 0; round < 300; ++round) {
    std::vector<int> rows(1 + below(30));
    for (int& count : rows) count = below(4) == 0 ? 0 : below(round % 2 == 0 ? 320 : 4000);
    rows.front() += 1;
    const int cluster_size = 1 + below(2);
    const int wide_rows = cluster_size == 2 && below(2) == 0 ? kWideRows : 0;
    const int tile_rows = wide_rows > 0 ? kMostRows : std::vector{32, 128, 192, kMostRows}[below(4)];
    SCOPED_TRACE(round);
    CheckSchedule(rows, tile_rows, std::max(tile_rows, wide_rows), 1 + below(20), cluster_size, 1 + below(66));
    if (HasFatalFailure()) return;
  }
}

TEST(GradientTiles, EveryTileOfEverySlotOnce) {
  std::mt19937 random(7);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  for (int round = 0; round < 300; ++round) {
    const int slots = 1 + below(9), rows = 8 * (1 + below(400)), right_tiles = 1 + below(20), clusters = 1 + below(66);
    std::map<std::tuple<int, int, int>, int> seen;  // slot, right tile, row of the slot: rows from there on
    for (int block = 0; block < 2 * clusters; ++block) {
      GradientTiles tiles(slots, rows, right_tiles, {2, block % 2, block / 2, clusters});
      for (Tile tile = tiles.Get(); tile.rows > 0; tiles.Next(), tile = tiles.Get()) {
        ASSERT_TRUE(seen.emplace(std::tuple(tile.slot, tile.weight_tile, tile.begin - tile.slot * rows), tile.rows).second);
      }
    }
    int next_slot = 0, next_right = 0, next_row = 0;
    for (const auto& [place, count] : seen) {
      ASSERT_EQ(place, std::tuple(next_slot, next_right, next_row)) << "round " << round;
      ASSERT_LE(count, kMostRows);
      next_row += count;
      if (next_row < rows) continue;
      ASSERT_EQ(next_row, rows);
      next_row = 0;
      if (++next_right == (right_tiles + 1) / 2 * 2) next_right = 0, ++next_slot;
    }
    ASSERT_EQ(next_slot, slots);
  }
}

}  // namespace
}  // namespace autoep::ops::cuda::hopper

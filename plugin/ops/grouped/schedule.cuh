// SPDX-License-Identifier: Apache-2.0
// Which tiles of a grouped product a block computes, and in which order. Every block works it out for itself from the groups' ends.
// Nothing here asks the device who it is, so that it is tested on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

namespace autoep::ops::cuda::hopper {

inline constexpr int kMostSlots = 1024;
inline constexpr int kGranule = 16;       // rows: tiles are cut at multiples of it
inline constexpr int kMostGranules = 16;  // in a tile
inline constexpr int kMostRows = kMostGranules * kGranule;
// Of a wide tile. A group of few more than kMostRows, or twice or thrice as many, is so many tiles then, and not one more, which
// would read the weights once more.
inline constexpr int kWideRows = 288;
inline constexpr int kMostWideTiles = 3;  // of a group
inline constexpr int kMostInBand = 12;    // row tiles that pass over one weight tile together, so that both stay in the L2 cache

struct alignas(16) Tile {
  int slot;
  int weight_tile;
  int begin;  // first row
  int rows;
};

// The blocks that share their rows, this one's place among them, and theirs among all.
struct Cluster {
  int size, rank;
  int number, count;
};

// In shared memory.
struct Groups {
  int* ends;   // [slots]
  int* first;  // [slots + 1]: number of the slot's first row tile; then their count

  __device__ int Begin(int slot) const { return slot == 0 ? 0 : ends[slot - 1]; }
  __device__ int Rows(int slot) const { return ends[slot] - Begin(slot); }
};

// Of a group: as many as it needs of tile_rows, or of wide_rows while so few of those hold it.
__device__ __forceinline__ int TilesOf(int rows, int tile_rows, int wide_rows) {
  const int most = rows <= kMostWideTiles * wide_rows ? wide_rows : tile_rows;
  return (rows + most - 1) / most;
}

// Rows of each but the last of so many tiles: even shares, in whole granules, so that no tile is nearly empty.
__device__ __forceinline__ int RowsOfTile(int rows, int tiles) {
  const int share = (rows + tiles - 1) / tiles;
  return (share + kGranule - 1) / kGranule * kGranule;
}

// Tiles by number, of a cluster's first block. The others take the weight tiles that follow, which may not exist, and the same
// rows.
class Schedule {
 public:
  __device__ Schedule(const Groups& groups, int slots, int weight_tiles, Cluster cluster)
      : groups_(groups),
        slots_(slots),
        weight_tiles_((weight_tiles + cluster.size - 1) / cluster.size),
        cluster_(cluster) {}

  // Of a cluster.
  __device__ int Count() const { return groups_.first[slots_] * weight_tiles_; }
  __device__ int First() const { return cluster_.number; }
  __device__ int Clusters() const { return cluster_.count; }

  __device__ Tile Get(int number) const {
    const int slot = Slot(number / weight_tiles_);
    const int row_tiles = groups_.first[slot + 1] - groups_.first[slot];
    const int local = number - groups_.first[slot] * weight_tiles_;
    const int bands = (row_tiles + kMostInBand - 1) / kMostInBand;
    const int most = (row_tiles + bands - 1) / bands;
    const int band = local / (most * weight_tiles_);
    const int in_band = std::min(most, row_tiles - band * most);
    const int place = local - band * most * weight_tiles_;
    const int row_tile = band * most + place % in_band;
    const int group_rows = groups_.Rows(slot);
    const int step = RowsOfTile(group_rows, row_tiles);
    const int begin = row_tile * step;
    return {slot, place / in_band * cluster_.size, groups_.Begin(slot) + begin, std::min(step, group_rows - begin)};
  }

 private:
  // The last slot that begins at or before this row tile.
  __device__ int Slot(int row_tile) const {
    int low = 0;
    int high = slots_;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (groups_.first[middle] <= row_tile ? low : high) = middle;
    }
    return low;
  }

  const Groups groups_;
  const int slots_;
  const int weight_tiles_;  // of a cluster
  const Cluster cluster_;
};

}  // namespace autoep::ops::cuda::hopper

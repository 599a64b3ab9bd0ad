// SPDX-License-Identifier: Apache-2.0
// Which tiles of a grouped product a block computes, and in which order. Every block works it out for itself from the groups' ends.
#pragma once

#include <cstdint>

namespace autoep::ops::cuda::hopper {

inline constexpr int kMostSlots = 1024;
inline constexpr int kMostWideTiles = 3;  // of a group
inline constexpr int kMostInBand = 12;  // row tiles that pass over one weight tile together, so that both stay in the L2 cache

struct alignas(16) Tile {
  int slot;
  int weight_tile;
  int begin;  // first row
  int rows;
};

// A lane's tile, for its whole warp.
__device__ __forceinline__ Tile OfLane(const Tile& tile, int lane) {
  return {__shfl_sync(~0u, tile.slot, lane), __shfl_sync(~0u, tile.weight_tile, lane), __shfl_sync(~0u, tile.begin, lane),
          __shfl_sync(~0u, tile.rows, lane)};
}

// The blocks that share their rows, and this one's place among them.
struct Cluster {
  int size, rank;
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

// By one warp.
__device__ inline void CountTiles(const int32_t* ends, int slots, int tile_rows, int wide_rows, const Groups& groups) {
  constexpr int kAtOnce = 4;  // times 32 slots: no read and no sum waits for another
  const int lane = threadIdx.x % 32;
  int before = 0;
  int begin = 0;
  for (int base = lane; base - lane < slots; base += 32 * kAtOnce) {
    int end[kAtOnce], own[kAtOnce], tiles[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) end[i] = ends[min(base + 32 * i, slots - 1)];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int lower = __shfl_up_sync(~0u, end[i], 1);
      const int rows = end[i] - (lane == 0 ? begin : lower);
      own[i] = tiles[i] = TilesOf(rows, tile_rows, wide_rows);
      begin = __shfl_sync(~0u, end[i], 31);
    }
    for (int step = 1; step < 32; step *= 2) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int lower = __shfl_up_sync(~0u, tiles[i], step);
        if (lane >= step) tiles[i] += lower;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int slot = base + 32 * i;
      if (slot < slots) {
        groups.ends[slot] = end[i];
        groups.first[slot] = before + tiles[i] - own[i];
      }
      before += __shfl_sync(~0u, tiles[i], 31);
    }
  }
  if (lane == 0) groups.first[slots] = before;
}

// Rows of each but the last of so many tiles: even shares, in whole granules, so that no tile is nearly empty.
__device__ __forceinline__ int RowsOfTile(int rows, int tiles, int granule) {
  const int share = (rows + tiles - 1) / tiles;
  return (share + granule - 1) / granule * granule;
}

// Tiles by number, of a cluster's first block. The others take the weight tiles that follow, which may not exist, and the same
// rows.
class Schedule {
 public:
  __device__ Schedule(const Groups& groups, int slots, int weight_tiles, int granule, Cluster cluster)
      : groups_(groups),
        slots_(slots),
        weight_tiles_((weight_tiles + cluster.size - 1) / cluster.size),
        granule_(granule),
        cluster_(cluster) {}

  // Of a cluster.
  __device__ int Count() const { return groups_.first[slots_] * weight_tiles_; }
  __device__ int First() const { return blockIdx.x / cluster_.size; }
  __device__ int Clusters() const { return gridDim.x / cluster_.size; }

  __device__ Tile Get(int number) const {
    const int slot = Slot(number / weight_tiles_);
    const int row_tiles = groups_.first[slot + 1] - groups_.first[slot];
    const int local = number - groups_.first[slot] * weight_tiles_;
    const int bands = (row_tiles + kMostInBand - 1) / kMostInBand;
    const int most = (row_tiles + bands - 1) / bands;
    const int band = local / (most * weight_tiles_);
    const int in_band = min(most, row_tiles - band * most);
    const int place = local - band * most * weight_tiles_;
    const int row_tile = band * most + place % in_band;
    const int group_rows = groups_.Rows(slot);
    const int step = RowsOfTile(group_rows, row_tiles, granule_);
    const int begin = row_tile * step;
    return {slot, place / in_band * cluster_.size, groups_.Begin(slot) + begin, min(step, group_rows - begin)};
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
  const int granule_;
  const Cluster cluster_;
};

}  // namespace autoep::ops::cuda::hopper

// SPDX-License-Identifier: Apache-2.0
// The groups' ends, and how many tiles each of them is, into shared memory.
#pragma once

#include <cstdint>

#include "plugin/ops/grouped/schedule.cuh"

namespace autoep::ops::cuda::hopper {

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

}  // namespace autoep::ops::cuda::hopper

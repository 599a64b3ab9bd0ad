// SPDX-License-Identifier: Apache-2.0
// Which tiles of a gradient of weights a block computes.
#pragma once

#include "plugin/ops/grouped/schedule.cuh"

namespace autoep::ops::cuda::hopper {

// A block's tiles. The clusters take turns, slot by slot, so that a slot's rows stay in the L2 cache. Counted by digits: the
// loading thread divides at its beginning only.
class GradientTiles {
 public:
  // Of the gradient [slots, rows, columns], of which right_tiles hold all columns.
  __device__ __forceinline__ GradientTiles(int slots, int rows, int right_tiles, Cluster cluster)
      : slots_(slots),
        rows_(rows),
        right_tiles_((right_tiles + cluster.size - 1) / cluster.size),
        left_tiles_((rows + kMostRows - 1) / kMostRows),
        tile_rows_(RowsOfTile(rows, left_tiles_)),
        at_(DigitsOf(cluster.number)),
        stride_(DigitsOf(cluster.count)),
        cluster_(cluster) {}

  // Without rows: there is no more.
  __device__ __forceinline__ Tile Get() const {
    if (at_.slot >= slots_) return {};
    const int begin = at_.left * tile_rows_;
    return {at_.slot, at_.right * cluster_.size + cluster_.rank, at_.slot * rows_ + begin, std::min(tile_rows_, rows_ - begin)};
  }

  __device__ __forceinline__ void Next() {
    at_.right += stride_.right;
    const int left = at_.right >= right_tiles_;
    at_.right -= left * right_tiles_;
    at_.left += stride_.left + left;
    const int slot = at_.left >= left_tiles_;
    at_.left -= slot * left_tiles_;
    at_.slot += stride_.slot + slot;
  }

 private:
  struct Digits {
    int slot, left, right;
  };

  __device__ __forceinline__ Digits DigitsOf(int number) const {
    const int left = number / right_tiles_;
    return {left / left_tiles_, left % left_tiles_, number % right_tiles_};
  }

  const int slots_, rows_;
  const int right_tiles_;  // of a cluster
  const int left_tiles_, tile_rows_;
  Digits at_;
  const Digits stride_;
  const Cluster cluster_;
};

}  // namespace autoep::ops::cuda::hopper

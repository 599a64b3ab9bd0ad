// SPDX-License-Identifier: Apache-2.0
// What the grouped product takes, and which of its kernels it starts.
#include "plugin/ops/grouped/grouped_cuda.h"

namespace autoep::ops::cuda {

namespace hopper {
const char* LaunchBf16(const GroupedProduct& product, int multiprocessors, cudaStream_t stream);
const char* LaunchFp16(const GroupedProduct& product, int multiprocessors, cudaStream_t stream);
const char* LaunchGradient(const GroupedGradient& product, int multiprocessors, cudaStream_t stream);
}  // namespace hopper

namespace {

constexpr int64_t kMostSlots = 1024;

bool Sized(int64_t size) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return size >= 8 && size % 8 == 0 && size <= kMost;
}

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool HopperCan(const GroupedProduct& product) {
  // Tiles are counted in 32 bits; none is smaller than this.
  constexpr int64_t kLeastTile = 64;
  const int64_t tiles = (product.rows / kLeastTile + product.slots + 1) * (product.columns / kLeastTile + 2);
  return Sized(product.depth) && Sized(product.columns) && product.slots >= 1 && product.slots <= kMostSlots &&
         tiles <= INT32_MAX && product.rows <= INT32_MAX && (!product.activation || product.gated()) && Aligned(product.in) &&
         Aligned(product.weight) && Aligned(product.out) && Aligned(product.hidden) &&
         (product.type == RowType::kBFloat16 || product.type == RowType::kHalf);
}

bool HopperCan(const GroupedGradient& product) {
  constexpr int64_t kLeastTile = 128;
  const int64_t rows = product.slots * product.out_rows;
  const int64_t tiles = (rows / kLeastTile + product.slots) * (product.columns / kLeastTile + 1);
  return Sized(product.out_rows) && Sized(product.columns) && Sized(product.out_pitch) && product.slots >= 1 &&
         product.slots <= kMostSlots && rows <= INT32_MAX && tiles <= INT32_MAX && product.rows <= INT32_MAX &&
         Aligned(product.left) && Aligned(product.right) && Aligned(product.out) &&
         (product.type == RowType::kBFloat16 || product.type == RowType::kHalf);
}

const char* LaunchHopper(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  return product.type == RowType::kHalf ? hopper::LaunchFp16(product, multiprocessors, stream)
                                        : hopper::LaunchBf16(product, multiprocessors, stream);
}

const char* LaunchHopper(const GroupedGradient& product, int multiprocessors, cudaStream_t stream) {
  return hopper::LaunchGradient(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda

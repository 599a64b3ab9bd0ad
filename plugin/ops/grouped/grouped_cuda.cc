// SPDX-License-Identifier: Apache-2.0
// What the grouped product takes, and which of its kernels it starts.
#include "plugin/ops/grouped/grouped_cuda.h"

namespace autoep::ops::cuda {

namespace hopper {
const char* LaunchBf16(const GroupedProduct& product, int multiprocessors, cudaStream_t stream);
const char* LaunchFp16(const GroupedProduct& product, int multiprocessors, cudaStream_t stream);
}  // namespace hopper

bool HopperCan(const GroupedProduct& product) {
  constexpr int64_t kMostSlots = 1024;
  constexpr int64_t kMostColumns = int64_t{1} << 30;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  // Tiles are counted in 32 bits; none is smaller than this.
  constexpr int64_t kLeastTile = 64;
  const int64_t tiles = (product.rows / kLeastTile + product.slots + 1) * (product.columns / kLeastTile + 2);
  const auto sized = [](int64_t size) { return size >= 8 && size % 8 == 0 && size <= kMostColumns; };
  return sized(product.depth) && sized(product.columns) && product.slots >= 1 && product.slots <= kMostSlots &&
         tiles <= INT32_MAX && product.rows <= INT32_MAX && (!product.activation || product.gated()) && aligned(product.in) &&
         aligned(product.weight) && aligned(product.out) && aligned(product.hidden) &&
         (product.type == RowType::kBFloat16 || product.type == RowType::kHalf);
}

const char* LaunchHopper(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  return product.type == RowType::kHalf ? hopper::LaunchFp16(product, multiprocessors, stream)
                                        : hopper::LaunchBf16(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda

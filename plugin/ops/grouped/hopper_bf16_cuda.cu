// SPDX-License-Identifier: Apache-2.0
// The grouped product in bf16.
#include "plugin/ops/grouped/hopper_kernel.cuh"

namespace autoep::ops::cuda::hopper {

const char* LaunchBf16(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  return LaunchTyped<__nv_bfloat16>(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda::hopper

// SPDX-License-Identifier: Apache-2.0
// Dependent launch, from compute capability 9.0 on: a grid may begin while the one before it in the stream still runs, and
// waits for it itself.
//
// What all of ours keep to: every grid waits, in one thread at least, before it ends, so that its end means the end of all
// before it. And before its own wait a grid neither reads nor writes what another grid may have a hand in, nor memory that was
// freed, which is given out again in the stream's order. A prefetch into the L2 cache reads nothing: it may come earlier.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "plugin/ops/device_cuda.h"

namespace autoep::ops::cuda {

// Waits for the grid before this one, hence all before it, and their writes.
__device__ __forceinline__ void WaitForEarlierGrids() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next grid start as soon as all blocks of this one have, and there is room.
__device__ __forceinline__ void LetNextGridStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void PrefetchToL2(const void* address) {
  asm volatile("prefetch.L2 [%0];" ::"l"(address) : "memory");
}

// For a kernel that calls WaitForEarlierGrids.
inline cudaLaunchAttribute BeginsEarly() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// Whether the current device has the wait; kernels are compiled for it wherever they run there.
inline bool CanWait() { return DeviceHas<cudaDevAttrComputeCapabilityMajor, 9>(); }

// Launches a kernel that calls WaitForEarlierGrids, on any device: older ones have no such wait, and start it in turn.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchDependent(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared, cudaStream_t stream,
                            Arguments... arguments) {
  cudaLaunchAttribute early = BeginsEarly();
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = CanWait() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace autoep::ops::cuda

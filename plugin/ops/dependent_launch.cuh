// SPDX-License-Identifier: Apache-2.0
// Dependent launch, from compute capability 9.0 on: a grid may begin while the one before it in the stream still runs, and waits
// for it itself.
//
// What all of ours keep to: some thread of every grid waits before the grid ends, so that a grid's end means the end of all before
// it; and before its own wait a grid neither reads nor writes what another grid may have a hand in, for memory that was freed is
// given out again in the stream's order. A prefetch into the L2 cache reads nothing: it may come earlier.
#pragma once

#include <cuda_runtime.h>

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
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
}

// For a kernel that calls WaitForEarlierGrids.
inline cudaLaunchAttribute BeginsEarly() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// Launches a kernel that calls WaitForEarlierGrids, on any device: older ones have no such wait, and start it in turn.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchDependent(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t shared, cudaStream_t stream,
                            Arguments... arguments) {
  int device = 0;
  int major = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device); error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute early = BeginsEarly();
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = major >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace autoep::ops::cuda

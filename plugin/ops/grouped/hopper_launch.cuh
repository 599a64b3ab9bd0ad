// SPDX-License-Identifier: Apache-2.0
// Starts a kernel of the grouped product: a block on each multiprocessor, in clusters.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

#include "plugin/ops/cluster.cuh"
#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"

namespace autoep::ops::cuda::hopper {

struct Shape {
  Cut cut;
  unsigned cluster;
};

// Lets a kernel have the shared memory of any cut: once on each device, for the call costs the host as much as a launch.
template <auto kKernel>
cudaError_t AllowShared() {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

// Returns what failed, or null. The grid may start before the one ahead of it has ended.
template <auto kKernel, typename... Maps>
const char* LaunchCluster(Shape shape, int multiprocessors, cudaStream_t stream, const KernelArgs& args, const Maps&... maps) {
  if (const cudaError_t error = AllowShared<kKernel>(); error != cudaSuccess) return cudaGetErrorString(error);
  cudaLaunchAttribute attributes[] = {BeginsEarly(), InClusters(shape.cluster)};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors) / shape.cluster * shape.cluster);
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = SharedBytes(shape.cut, args.slots);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  const cudaError_t error = cudaLaunchKernelEx(&config, kKernel, args, maps...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace autoep::ops::cuda::hopper

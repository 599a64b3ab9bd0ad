// SPDX-License-Identifier: Apache-2.0
// Clusters of blocks that reach each other's shared memory, from compute capability 9.0 on; what is compiled for older ones is not
// started there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace autoep::ops::cuda {

// For a launch: of so many blocks.
inline cudaLaunchAttribute InClusters(unsigned blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  return attribute;
}

#if __CUDA_ARCH__ >= 900
#define AUTOEP_IN_CLUSTER(...) asm volatile(__VA_ARGS__)
#else
#define AUTOEP_IN_CLUSTER(...)
#endif

__device__ __forceinline__ int ClusterSize() {
  int size = 1;
  AUTOEP_IN_CLUSTER("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

__device__ __forceinline__ int ClusterRank() {
  int rank = 0;
  AUTOEP_IN_CLUSTER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Every thread of the cluster.
__device__ __forceinline__ void SyncCluster() {
  AUTOEP_IN_CLUSTER("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Of what lies at this place of shared memory in another block of the cluster.
__device__ __forceinline__ uint32_t PeerAddress(const void* mine, int rank) {
  uint32_t address = 0;
  AUTOEP_IN_CLUSTER("mapa.shared::cluster.u32 %0, %1, %2;"
                    : "=r"(address)
                    : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(rank));
  return address;
}

__device__ __forceinline__ float ReadAtPeer(const float* mine, int rank) {
  float value = 0;
  AUTOEP_IN_CLUSTER("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(PeerAddress(mine, rank)) : "memory");
  return value;
}

#undef AUTOEP_IN_CLUSTER

}  // namespace autoep::ops::cuda

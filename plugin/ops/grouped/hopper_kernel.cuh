// SPDX-License-Identifier: Apache-2.0
// The grouped product on Hopper. Weights are wgmma's first operand and rows its second, so that a tile may have any number of
// rows: a decoding step of 16 tokens and a group of thousands run the same code, and little is computed for nothing.
//
// A block has one warpgroup that loads and two that multiply. Loading: weights by the copy engine; rows by the copy engine where
// they lie in order, else by cp.async, one row of 128 bytes by 8 threads. Multiplying: each warpgroup takes 64 of a tile's 128
// weight rows and all of its rows, and writes a tile while it multiplies the next. Where the copy engine loads the rows, the blocks
// of a cluster work on neighbouring weight tiles and the same rows: each loads a share of them for all, since large tiles are bound
// by what the L2 cache can deliver.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "plugin/ops/grouped/hopper_load.cuh"
#include "plugin/ops/grouped/hopper_multiply.cuh"

namespace autoep::ops::cuda::hopper {

template <typename T, Form kForm, Way kWay>
__global__ void __launch_bounds__(kBlockThreads, 1)
    GroupedKernel(const __grid_constant__ KernelArgs args, const __grid_constant__ CUtensorMap weights,
                  const __grid_constant__ CUtensorMap wide_rows, const __grid_constant__ CUtensorMap large_rows,
                  const __grid_constant__ CUtensorMap small_rows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kGather = kWay == Way::kGathered;
  extern __shared__ __align__(kAlignment) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + args.cut.stages * StageBytes(args.cut));
  const Memory memory{shared, raw, StageBytes(args.cut)};
  const Cluster cluster{ClusterSize(), ClusterRank()};
  if (!args.only_in_is_fresh) WaitForEarlierGrids();
  LetNextGridStart();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.cut.stages; ++stage) {
      InitBarrier(&shared.full[stage], kGather ? 1 + kGroupThreads : 1);
      InitBarrier(&shared.empty[stage], kConsumerWarps * cluster.size);
    }
    for (int slot = 0; slot < kQueued; ++slot) {
      InitBarrier(&shared.queued[slot], 1);
      InitBarrier(&shared.taken[slot], cluster.size);
    }
    FenceBarrierInit();
    PrefetchMap(&weights);
    if (!kGather) {
      PrefetchMap(&wide_rows);
      PrefetchMap(&large_rows);
      PrefetchMap(&small_rows);
    }
  }
  if (threadIdx.x / 32 == 1) {
    CountTiles(args.ends, args.slots, min(args.cut.tile_rows, kMostRows), args.cut.tile_rows, shared.groups);
  }
  __syncthreads();
  if (cluster.size > 1) SyncCluster();
  const int weight_tiles = (args.columns + kTileColumns<kForm> - 1) / kTileColumns<kForm>;
  const Schedule schedule(shared.groups, args.slots, weight_tiles, kGranule, cluster);
  if (threadIdx.x < kGroupThreads) {
    ShrinkRegisters<kGather ? kGatheringRegisters : kLoadingRegisters>();
    if constexpr (kGather) {
      LoadGathered<kForm>(args, weights, memory, schedule);
    } else if (threadIdx.x == 0) {
      LoadInOrder<kForm>(args, weights, {wide_rows, large_rows, small_rows}, memory, cluster);
    } else if (threadIdx.x == 32 && cluster.rank == 0) {
      QueueTiles(args, shared, cluster, schedule);
    }
  } else {
    GrowRegisters<ConsumerRegisters(kGather ? kGatheringRegisters : kLoadingRegisters)>();
    Consumer<T, kForm, kWay>(args, memory, cluster).Run();
  }
  // Others may still write here, and arrive at barriers here.
  if (cluster.size > 1) SyncCluster();
#endif
}

struct Shape {
  Cut cut;
  unsigned cluster;
};

// Measured on an H100: where weights are what is loaded, more stages of them help; else the L2 cache is the limit, and sharing rows
// helps.
template <Way kWay>
Shape ShapeFor(const GroupedProduct& product) {
  if (ReadsWeights(product)) return {kSmallCut, 1};
  if constexpr (kWay == Way::kInOrder) return {kLargeCut, 2};
  return kWay == Way::kWide ? Shape{kWideCut, 2} : Shape{kLargeCut, 1};
}

// Groups of about a tile's rows, about half of which have a few more; and so many tiles that larger ones keep all blocks busy.
// Measured on an H200.
template <Form kForm>
bool WideHelps(const GroupedProduct& product, int multiprocessors) {
  const int64_t rows = product.rows / product.slots;
  const int64_t weight_tiles = (product.columns + kTileColumns<kForm> - 1) / kTileColumns<kForm>;
  return rows >= kMostRows * 3 / 4 && rows <= kMostRows * 9 / 8 && product.slots * weight_tiles >= int64_t{4} * multiprocessors;
}

// Lets a kernel have the shared memory of any cut: once on each device, for the call costs the host as much as a launch.
template <auto kKernel>
cudaError_t AllowShared() {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  constexpr int kBytes = std::max({SharedBytes(kSmallCut), SharedBytes(kLargeCut), SharedBytes(kWideCut)});
  const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

template <typename T, Form kForm, Way kWay>
const char* Launch(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  const auto weights = kForm == Form::kAcross ? AcrossMap(product) : WeightMap(product);
  const auto large_rows = kWay == Way::kGathered ? weights : RowMap(product, kLargeBox);
  const auto small_rows = kWay == Way::kGathered ? weights : RowMap(product, kSmallBox);
  const auto wide_rows = kWay == Way::kWide ? RowMap(product, kWideBox) : large_rows;
  if (!weights || !wide_rows || !large_rows || !small_rows) return "the driver refused a tensor map";
  const auto [cut, cluster] = ShapeFor<kWay>(product);
  const ActivationCall activation = AsVisited(product.activation.value_or(ActivationCall{}));
  const KernelArgs args{product.in,
                        product.source,
                        product.ends,
                        product.bias,
                        product.hidden,
                        product.out,
                        product.next_tile,
                        static_cast<int>(product.slots),
                        static_cast<int>(product.columns),
                        static_cast<int>(product.depth),
                        cut,
                        activation.spec.kind,
                        static_cast<float>(activation.alpha),
                        static_cast<float>(activation.limit),
                        static_cast<float>(activation.spec.shift),
                        product.only_in_is_fresh};
  constexpr auto kKernel = &GroupedKernel<T, kForm, kWay>;
  if (const cudaError_t error = AllowShared<kKernel>(); error != cudaSuccess) return cudaGetErrorString(error);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors) / cluster * cluster);
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = SharedBytes(cut);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  const cudaError_t error = cudaLaunchKernelEx(&config, kKernel, args, *weights, *wide_rows, *large_rows, *small_rows);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T, Form kForm>
const char* LaunchForm(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  if constexpr (kForm != Form::kAcross) {
    if (product.source != nullptr) return Launch<T, kForm, Way::kGathered>(product, multiprocessors, stream);
  }
  return WideHelps<kForm>(product, multiprocessors) ? Launch<T, kForm, Way::kWide>(product, multiprocessors, stream)
                                                    : Launch<T, kForm, Way::kInOrder>(product, multiprocessors, stream);
}

template <typename T>
const char* LaunchTyped(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  if (product.weight_across) return LaunchForm<T, Form::kAcross>(product, multiprocessors, stream);
  return product.gated() ? LaunchForm<T, Form::kGated>(product, multiprocessors, stream)
                         : LaunchForm<T, Form::kPlain>(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda::hopper

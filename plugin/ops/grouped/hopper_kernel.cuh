// SPDX-License-Identifier: Apache-2.0
// The grouped product on Hopper. Weights are wgmma's first operand and rows its second, so that a tile may have any number of
// rows: a decoding step of 16 tokens and a group of thousands run the same code, and little is computed for nothing.
//
// A block has one warpgroup that loads and two that multiply. Loading: weights by the copy engine; rows by the copy engine where
// they lie in order, else by cp.async, one row of 128 bytes by 8 threads. Multiplying: each warpgroup takes 64 of a tile's 128
// weight rows and all of its rows. Where the copy engine loads the rows, the blocks of a cluster work on neighbouring weight tiles
// and the same rows: each loads a share of them for all, since large tiles are bound by what the L2 cache can deliver.
#pragma once

#include <cuda_runtime_api.h>

#include <limits>
#include <type_traits>

#include "plugin/ops/grouped/hopper_load.cuh"
#include "plugin/ops/grouped/hopper_store.cuh"
#include "plugin/ops/grouped/wgmma.cuh"

namespace autoep::ops::cuda::hopper {

// meanwhile() runs beside the first products.
template <typename T, Form kForm, int N, typename Meanwhile>
__device__ __forceinline__ void Multiply(const KernelArgs& args, const Tile& tile, const Out& out, int group, int steps,
                                         const Memory& memory, Cluster cluster, Ring& ring, Meanwhile meanwhile) {
  constexpr bool kAcross = kForm == Form::kAcross;
  float sum[N / 2];
  const auto release = [&](int stage) {
    if (cluster.size == 1) {
      if (out.lane == 0) Arrive(memory.Empty(stage));
    } else if (out.lane < cluster.size) {
      ArriveAtPeer(memory.Empty(stage), out.lane);
    }
  };
  const auto multiply = [&](auto first) {
    Wait(memory.Full(ring.stage), ring.phase);
    if (args.source != nullptr) FenceAsyncProxy();
    const uint8_t* stage = memory.Stage(ring.stage);
    const uint64_t weights = Descriptor(stage + group * 64 * kRowBytes);
    const uint64_t rows = Descriptor(stage + kWeightBytes);
    FenceWgmma();
#pragma unroll
    for (int part = 0; part < kTileDepth / 16; ++part) {
      if (first && part == 0) {
        Wgmma<T, N, kAcross>::Start(sum, weights, rows);
      } else {
        Wgmma<T, N, kAcross>::Add(sum, weights + (kAcross ? 128 : 2) * part, rows + 2 * part);
      }
    }
    CommitWgmma();
  };
  multiply(std::true_type());
  meanwhile();
  int previous = ring.stage;
  ring.Next();
#pragma unroll 1
  for (int step = 1; step < steps; ++step) {
    multiply(std::false_type());
    WaitWgmma<1>();
    release(previous);
    previous = ring.stage;
    ring.Next();
  }
  WaitWgmma<0>();
#pragma unroll
  for (float& value : sum) asm volatile("" : "+f"(value)::"memory");  // nothing reads them before the wait
  release(previous);
  Finish<T, kForm, N>(args, tile, out, group, sum);
}

template <typename T, Form kForm>
__device__ __forceinline__ void Consume(const KernelArgs& args, const Memory& memory, Cluster cluster, Cursor cursor) {
  const int group = threadIdx.x / kGroupThreads - 1;
  const int thread = threadIdx.x % kGroupThreads;
  const Out out{memory.shared.out[group], 1 + group, thread / 32, thread % 32, thread};
  const int steps = (args.depth + kTileDepth - 1) / kTileDepth;
  Ring ring{args.cut.stages};
  Tile next{};
  const auto look_up = [&] {
    if (cursor.Valid()) next = cursor.Get();
  };
  look_up();
  for (bool more = cursor.Valid(); more;) {
    const Tile tile = next;
    cursor.Next();
    more = cursor.Valid();
    const auto multiply = [&]<int N>() { Multiply<T, kForm, N>(args, tile, out, group, steps, memory, cluster, ring, look_up); };
    if (tile.rows <= 8) {
      multiply.template operator()<8>();
    } else if (tile.rows <= 16) {
      multiply.template operator()<16>();
    } else if (tile.rows <= 32) {
      multiply.template operator()<32>();
    } else if (tile.rows <= 64) {
      multiply.template operator()<64>();
    } else if (tile.rows <= 96) {
      multiply.template operator()<96>();
    } else if (tile.rows <= 128) {
      multiply.template operator()<128>();
    } else if (tile.rows <= 160) {
      multiply.template operator()<160>();
    } else if (tile.rows <= 192) {
      multiply.template operator()<192>();
    } else if (tile.rows <= 224) {
      multiply.template operator()<224>();
    } else {
      multiply.template operator()<256>();
    }
  }
}

template <typename T, Form kForm>
__global__ void __launch_bounds__(kBlockThreads, 1)
    GroupedKernel(const __grid_constant__ KernelArgs args, const __grid_constant__ CUtensorMap weights,
                  const __grid_constant__ CUtensorMap large_rows, const __grid_constant__ CUtensorMap small_rows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const uint32_t past = SharedAddress(raw + sizeof(Shared)) % kAlignment;
  const Memory memory{shared, raw + sizeof(Shared) + (kAlignment - past) % kAlignment, StageBytes(args.cut)};
  const bool gather = args.source != nullptr;
  const Cluster cluster{ClusterSize(), ClusterRank()};
  if (!args.only_in_is_fresh) WaitForEarlierGrids();
  LetNextGridStart();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.cut.stages; ++stage) {
      InitBarrier(&shared.full[stage], gather ? 1 + kGroupThreads : 1);
      InitBarrier(&shared.empty[stage], kConsumerWarps * cluster.size);
    }
    FenceBarrierInit();
    PrefetchMap(&weights);
    if (!gather) {
      PrefetchMap(&large_rows);
      PrefetchMap(&small_rows);
    }
  }
  if (threadIdx.x / 32 == 1) CountTiles(args.ends, args.slots, args.cut.tile_rows, shared.groups);
  __syncthreads();
  if (cluster.size > 1) SyncCluster();
  const int weight_tiles = (args.columns + kTileColumns<kForm> - 1) / kTileColumns<kForm>;
  const auto cursor = [&] { return Cursor(shared.groups, args.slots, weight_tiles, kGranule, cluster); };
  if (threadIdx.x < kGroupThreads) {
    ShrinkRegisters<kLoaderRegisters>();
    if (gather) {
      LoadGathered<kForm>(args, weights, memory, cursor());
    } else if (threadIdx.x == 0) {
      LoadInOrder<kForm>(args, weights, {large_rows, small_rows}, memory, cluster, cursor());
    }
  } else {
    GrowRegisters<kConsumerRegisters>();
    Consume<T, kForm>(args, memory, cluster, cursor());
  }
  // Others may still write here, and arrive at barriers here.
  if (cluster.size > 1) SyncCluster();
#endif
}

struct Shape {
  Cut cut;
  unsigned cluster;
};

// Measured on an H100: with few rows for each slot, weights are what is loaded, and more stages of them help; with many, the L2
// cache is the limit, and sharing rows helps.
inline Shape ShapeFor(const GroupedProduct& product) {
  constexpr int64_t kFewRows = 96;
  const bool few = product.rows / product.slots <= kFewRows;
  return {few ? kSmallCut : kLargeCut, few || product.source != nullptr ? 1u : 2u};
}

template <typename T, Form kForm>
const char* Launch(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  const auto weights = kForm == Form::kAcross ? AcrossMap(product) : WeightMap(product);
  const auto large_rows = product.source == nullptr ? RowMap(product, kLargeBox) : weights;
  const auto small_rows = product.source == nullptr ? RowMap(product, kSmallBox) : weights;
  if (!weights || !large_rows || !small_rows) return "the driver refused a tensor map";
  const auto [cut, cluster] = ShapeFor(product);
  constexpr float kNoLimit = std::numeric_limits<float>::infinity();
  const ActivationCall activation = product.activation.value_or(ActivationCall{});
  const bool clamped = activation.spec.kind == contract::Activation::kClampedSwiglu;
  const KernelArgs args{product.in,
                        product.source,
                        product.ends,
                        product.bias,
                        product.hidden,
                        product.out,
                        static_cast<int>(product.slots),
                        static_cast<int>(product.columns),
                        static_cast<int>(product.depth),
                        cut,
                        activation.spec.kind,
                        clamped ? static_cast<float>(activation.alpha) : 1,
                        clamped ? static_cast<float>(activation.limit) : kNoLimit,
                        static_cast<float>(activation.spec.shift),
                        product.only_in_is_fresh};
  const auto kernel = GroupedKernel<T, kForm>;
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SharedBytes(cut));
      error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
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
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args, *weights, *large_rows, *small_rows);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
const char* LaunchTyped(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  if (product.weight_across) return Launch<T, Form::kAcross>(product, multiprocessors, stream);
  if (product.gated()) return Launch<T, Form::kGated>(product, multiprocessors, stream);
  return Launch<T, Form::kPlain>(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda::hopper

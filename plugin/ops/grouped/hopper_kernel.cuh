// SPDX-License-Identifier: Apache-2.0
// The grouped product on Hopper. Weights are wgmma's first operand and rows its second, so that a tile may have any number of
// rows: a decoding step of 16 tokens and a group of thousands run the same code, and little is computed for nothing.
//
// A block has a warpgroup that loads and stores, and two that multiply. Loading: weights by the copy engine; rows by the copy
// engine where they lie in order, else by cp.async, one row of 128 bytes by 8 threads. Multiplying: each warpgroup takes 64 of a
// tile's 128 weight rows and all of its rows. Storing: a tile while the next is multiplied. Where the copy engine loads the rows,
// the blocks of a cluster work on neighbouring weight tiles and the same rows: each loads a share of them for all, since large
// tiles ask much of the L2 cache.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/grouped/count_tiles.cuh"
#include "plugin/ops/grouped/hopper_launch.cuh"
#include "plugin/ops/grouped/hopper_load.cuh"
#include "plugin/ops/grouped/hopper_multiply.cuh"

namespace autoep::ops::cuda::hopper {

template <typename T, Form kForm, Way kWay>
__global__ void __launch_bounds__(kBlockThreads, 1)
    GroupedKernel(const __grid_constant__ KernelArgs args, const __grid_constant__ CUtensorMap weights,
                  const __grid_constant__ CUtensorMap wide_rows, const __grid_constant__ CUtensorMap large_rows,
                  const __grid_constant__ CUtensorMap small_rows, const __grid_constant__ CUtensorMap out,
                  const __grid_constant__ CUtensorMap gates, const __grid_constant__ CUtensorMap ups) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr bool kGather = kWay == Way::kGathered;
  extern __shared__ __align__(kAlignment) uint8_t raw[];
  const Memory memory(raw, args.cut, args.slots);
  Shared& shared = memory.shared;
  const Cluster cluster = ThisCluster();
  const int weight_tiles = (args.columns + kTileColumns<kForm> - 1) / kTileColumns<kForm>;
  if (threadIdx.x == 0) {
    InitBarriers(shared, args.cut.stages, cluster, kGather ? 1 + kGroupThreads : 1);
    PrefetchMap(&weights);
    PrefetchMap(&out);
    if (!kGather) {
      PrefetchMap(&wide_rows);
      PrefetchMap(&large_rows);
      PrefetchMap(&small_rows);
    }
  }
  // The next grid may take what is older than this one for done, hence the order.
  if (!args.only_in_is_fresh) WaitForEarlierGrids();
  LetNextGridStart();
  if (threadIdx.x / 32 == 1) {
    CountTiles(args.ends, args.slots, min(args.cut.tile_rows, kMostRows), args.cut.tile_rows, memory.groups);
  }
  __syncthreads();
  if (cluster.size > 1) SyncCluster();
  const Schedule schedule(memory.groups, args.slots, weight_tiles, cluster);
  constexpr int kOtherRegisters = kGather ? kGatheringRegisters : kLoadingRegisters;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x < kGroupThreads) {
    ShrinkRegisters<kOtherRegisters>();
    if constexpr (kGather) {
      ByTwo(args.cut) ? LoadGathered<kForm, 2>(args, weights, memory, schedule)
                      : LoadGathered<kForm, 1>(args, weights, memory, schedule);
    } else if (threadIdx.x == 0) {
      constexpr int kMostAtOnce = kWay == Way::kFew ? 2 : 1;
      const RowMaps maps{wide_rows, large_rows, small_rows};
      kMostAtOnce > 1 && ByTwo(args.cut) ? LoadInOrder<kForm, kWay, kMostAtOnce>(args, weights, maps, memory, cluster)
                                         : LoadInOrder<kForm, kWay, 1>(args, weights, maps, memory, cluster);
    } else if (threadIdx.x == 32 && cluster.rank == 0) {
      QueueTiles(args, shared, cluster, schedule);
    } else if (kInParts<kWay> && warp >= kFirstStorer) {
      StoreParts<T, kForm>(args, {out, gates, ups}, memory, warp - kFirstStorer);
    }
  } else {
    GrowRegisters<MultiplyingRegisters(kOtherRegisters)>();
    Multiplier<T, kForm, kWay>(args, {out, gates, ups}, memory, cluster).Run();
  }
  // Others may still write here, and arrive at barriers here.
  if (cluster.size > 1) SyncCluster();
#endif
}

template <size_t kCount>
Cut SmallestOf(const Cut (&cuts)[kCount], const GroupedProduct& product) {
  const auto suits = [&](const Cut& cut) {
    return product.rows / product.slots <= cut.group_rows && product.slots <= MostSlots(cut);
  };
  return *std::find_if(cuts, cuts + kCount - 1, suits);
}

template <Way kWay>
Shape ShapeFor(const GroupedProduct& product) {
  constexpr unsigned kBlocks = kClusterOf<kWay>;
  if constexpr (kWay == Way::kWide) return {kWideCut, kBlocks};
  if constexpr (kWay == Way::kInOrder) return {SmallestOf(kInOrderCuts, product), kBlocks};
  if constexpr (kWay == Way::kGathered) return {SmallestOf(kGatheredCuts, product), kBlocks};
  return {SmallestOf(kFewCuts, product), kBlocks};
}

// For groups of up to kMostWideTiles tiles. Of about one tile's rows, about half have a few more: times of the busiest pair of
// blocks, in rows of a weight tile, are estimated then, for without wide tiles half of the groups are two tiles, which read their
// weights twice, but also share them better.
template <Form kForm>
bool WideHelps(const GroupedProduct& product, int multiprocessors) {
  const int64_t rows = product.rows / product.slots;
  if (product.slots > MostSlots(kWideCut) || rows < kMostRows * 3 / 4 || rows > kMostWideTiles * kWideRows) return false;
  if (rows > kWideRows) return true;
  const int64_t pairs = multiprocessors / 2;
  const int64_t tiles = product.slots * ((product.columns + 2 * kTileColumns<kForm> - 1) / (2 * kTileColumns<kForm>));
  constexpr int64_t kUsualRows = 272;  // of a wide tile
  const int64_t wide = (tiles + pairs - 1) / pairs * kUsualRows;
  constexpr int64_t kReadTwice = 290;  // rows in the time of two tiles of half the rows, or one of kMostRows, on average
  return wide <= tiles * kReadTwice / pairs + kMostRows / 2;
}

template <typename T, Form kForm, Way kWay>
const char* Launch(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  const Shape shape = ShapeFor<kWay>(product);
  const auto weights = kForm == Form::kAcross ? AcrossMap(product) : WeightMap(product, ByTwo(shape.cut));
  const auto large_rows = kWay == Way::kGathered ? weights : RowMap(product, kLargeBox);
  const auto small_rows = kWay == Way::kGathered ? weights : RowMap(product, kSmallBox);
  const auto wide_rows = kWay == Way::kWide ? RowMap(product, kWideBox) : large_rows;
  constexpr bool kGated = kForm == Form::kGated;
  const auto map_out = [&](void* to, int64_t at, int64_t pitch) {
    return GroupMap(product.type, static_cast<char*>(to) + at * 2, product.columns, pitch, kOutPitch / (kGated ? 4 : 2),
                    kStoreBox);
  };
  const auto out = map_out(product.out, 0, product.columns);
  const bool keeps = kGated && product.hidden != nullptr;
  const auto gates = keeps ? map_out(product.hidden, 0, 2 * product.columns) : out;
  const auto ups = keeps ? map_out(product.hidden, product.columns, 2 * product.columns) : out;
  if (!weights || !wide_rows || !large_rows || !small_rows || !out || !gates || !ups) return "the driver refused a tensor map";
  const ActivationCall activation = product.activation.value_or(ActivationCall{});
  const KernelArgs args{product.in,
                        product.source,
                        product.ends,
                        product.bias,
                        product.next_tile,
                        keeps,
                        static_cast<int>(product.slots),
                        static_cast<int>(product.columns),
                        static_cast<int>(product.depth),
                        shape.cut,
                        activation.spec.kind,
                        static_cast<float>(activation.alpha),
                        static_cast<float>(activation.limit),
                        static_cast<float>(activation.spec.shift),
                        product.only_in_is_fresh};
  return LaunchCluster<&GroupedKernel<T, kForm, kWay>>(shape, multiprocessors, stream, args, *weights, *wide_rows,
                                                       *large_rows, *small_rows, *out, *gates, *ups);
}

template <typename T, Form kForm>
const char* LaunchForm(const GroupedProduct& product, int multiprocessors, cudaStream_t stream) {
  if constexpr (kForm != Form::kAcross) {
    if (product.source != nullptr) return Launch<T, kForm, Way::kGathered>(product, multiprocessors, stream);
  }
  if (ReadsWeights(product)) return Launch<T, kForm, Way::kFew>(product, multiprocessors, stream);
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

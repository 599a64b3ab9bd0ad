// SPDX-License-Identifier: Apache-2.0
// The gradient of the grouped product's weights on Hopper, by the product's own multiplying warpgroups: depth is a slot's rows, and
// both operands lie across. The first, which takes the weights' place, is `right`, so that a tile's sums leave in out's own order;
// the second is `left`, and shared by a cluster. Rows past a slot's end are read as zeros.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/grouped/gradient_tiles.cuh"
#include "plugin/ops/grouped/hopper_launch.cuh"
#include "plugin/ops/grouped/hopper_load.cuh"
#include "plugin/ops/grouped/hopper_multiply.cuh"

namespace autoep::ops::cuda::hopper {

// A slot's rows, and where the copy engine finds them.
struct GroupRows {
  int begin, count;
  __device__ GroupRows(const Groups& groups, int slot) : begin(groups.Begin(slot)), count(groups.Rows(slot)) {}
  __device__ int First(int step) const { return kGroupEnd - count + step * kTileDepth; }
  __device__ int End() const { return begin + count; }
};

// One thread: `left` for the whole cluster, the blocks taking turns, and `right`.
__device__ __forceinline__ void LoadGradient(const KernelArgs& args, const CUtensorMap& right, const CUtensorMap& left,
                                             const Memory& memory, Cluster cluster) {
  const uint16_t everyone = static_cast<uint16_t>((1u << cluster.size) - 1);
  Ring ring{args.cut.stages, 1};
  GradientTiles tiles(args.slots, args.depth, (args.columns + kTileWeightRows - 1) / kTileWeightRows, cluster);
  for (Tile tile = tiles.Get(); tile.rows > 0; tiles.Next(), tile = tiles.Get()) {
    const GroupRows rows(memory.groups, tile.slot);
    const int chunks = (tile.rows + kTileDepth - 1) / kTileDepth;
    const int left_column = tile.begin - tile.slot * args.depth;
    const int right_column = tile.weight_tile * kTileWeightRows;
    const int steps = Steps(rows.count);
    for (int step = 0; step < steps; ++step, ring.Next()) {
      uint64_t* full = memory.Full(ring.stage);
      uint8_t* to = memory.Stage(ring.stage);
      Wait(memory.Empty(ring.stage), ring.phase);
      if (step == 0) memory.shared.tiles[ring.stage] = tile;
      ArriveExpecting(full, kWeightBytes + chunks * kChunkBytes);
      Copy4(to, &right, full, right_column, rows.First(step), rows.End(), kGroupEnd);
      Copy4(to + kChunkBytes, &right, full, right_column + kTileDepth, rows.First(step), rows.End(), kGroupEnd);
      for (int chunk = cluster.rank; chunk < chunks; chunk += cluster.size) {
        Copy4(to + kWeightBytes + chunk * kChunkBytes, &left, full, left_column + chunk * kTileDepth, rows.First(step), rows.End(),
              kGroupEnd, everyone);
      }
    }
  }
  Wait(memory.Empty(ring.stage), ring.phase);
  memory.shared.tiles[ring.stage] = {};
  Arrive(memory.Full(ring.stage));
}

namespace {

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    GradientKernel(const __grid_constant__ KernelArgs args, const __grid_constant__ CUtensorMap right,
                   const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(kAlignment) uint8_t raw[];
  const Memory memory(raw, args.cut, args.slots);
  Shared& shared = memory.shared;
  const Cluster cluster = ThisCluster();
  if (threadIdx.x == 0) {
    InitBarriers(shared, args.cut.stages, cluster, 1);
    PrefetchMap(&left);
    PrefetchMap(&right);
  }
  WaitForEarlierGrids();
  LetNextGridStart();
  for (int slot = threadIdx.x; slot < args.slots; slot += kBlockThreads) memory.groups.ends[slot] = args.ends[slot];
  __syncthreads();
  SyncCluster();
  const int warp = threadIdx.x / 32;
  if (threadIdx.x < kGroupThreads) {
    ShrinkRegisters<kLoadingRegisters>();
    if (threadIdx.x == 0) {
      LoadGradient(args, right, left, memory, cluster);
    } else if (warp >= kFirstStorer) {
      StoreParts<T, Form::kGradient>(args, {out, out, out}, memory, warp - kFirstStorer);
    }
  } else {
    GrowRegisters<MultiplyingRegisters(kLoadingRegisters)>();
    Multiplier<T, Form::kGradient, Way::kInOrder>(args, {out, out, out}, memory, cluster).Run();
  }
  SyncCluster();  // others may still write here, and arrive at barriers here
#endif
}

template <typename T>
const char* Launch(const GroupedGradient& product, int multiprocessors, cudaStream_t stream) {
  const auto left = GroupMap(product.type, product.left, product.out_rows, product.out_rows, kTileDepth, kTileDepth);
  const auto right = GroupMap(product.type, product.right, product.columns, product.columns, kTileDepth, kTileDepth);
  const auto out = GroupMap(product.type, product.out, product.columns, product.out_pitch, kTileDepth, kStoreBox);
  if (!left || !right || !out) return "the driver refused a tensor map";
  KernelArgs args{};
  args.ends = product.ends;
  args.slots = static_cast<int>(product.slots);
  args.columns = static_cast<int>(product.columns);
  args.depth = static_cast<int>(product.out_rows);
  args.cut = kLargeCut;
  return LaunchCluster<&GradientKernel<T>>({args.cut, kClusterOf<Way::kInOrder>}, multiprocessors, stream, args, *right, *left,
                                           *out);
}

}  // namespace

const char* LaunchGradient(const GroupedGradient& product, int multiprocessors, cudaStream_t stream) {
  return product.type == RowType::kHalf ? Launch<__half>(product, multiprocessors, stream)
                                        : Launch<__nv_bfloat16>(product, multiprocessors, stream);
}

}  // namespace autoep::ops::cuda::hopper

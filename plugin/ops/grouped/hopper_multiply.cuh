// SPDX-License-Identifier: Apache-2.0
// The multiplying warpgroups of the grouped product: a tile's sums, and what becomes of them while the next tile is multiplied.
#pragma once

#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"
#include "plugin/ops/grouped/hopper_store.cuh"
#include "plugin/ops/grouped/wgmma.cuh"

namespace autoep::ops::cuda::hopper {

// Calls run.operator()<N>() with the size of a product of so many granules of rows.
template <int kLow, int kHigh, typename Run>
__device__ __forceinline__ void VisitSize(int granules, const Run& run) {
  if constexpr (kLow == kHigh) {
    run.template operator()<kLow * kGranule>();
  } else if (granules <= (kLow + kHigh) / 2) {
    VisitSize<kLow, (kLow + kHigh) / 2>(granules, run);
  } else {
    VisitSize<(kLow + kHigh) / 2 + 1, kHigh>(granules, run);
  }
}

// A multiplying warpgroup. It is short of registers: 128 of sums and 64 of what is on its way out leave 40, and what is spilled
// comes back from the L2 cache, for the stages leave hardly any L1. Gathering takes more, so that there a tile is written at once.
template <typename T, Form kForm, Way kWay>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const KernelArgs& args, const Memory& memory, Cluster cluster)
      : args_(args),
        memory_(memory),
        cluster_(cluster),
        group_(threadIdx.x / kGroupThreads - 1),
        steps_((args.depth + kTileDepth - 1) / kTileDepth),
        ring_{args.cut.stages} {}

  __device__ __forceinline__ void Run() {
    Pending::Set(memory_.shared, {});
    for (;;) {
      const uint8_t* stage = AwaitStage();
      const Tile tile = ReadTile();
      if (tile.rows == 0) break;
      const Bias bias = BiasOf<T, kForm>(args_, tile);
      if constexpr (kWay == Way::kWide) {
        if (tile.rows > kMostRows) {
          DoWide(tile, bias, stage);
          continue;
        }
      }
      Multiply((tile.rows + kGranule - 1) / kGranule, stage);
      Pending::Set(memory_.shared, BoxOf<kForm>(args_, tile));
      if constexpr (kGather) {
        StoreNow(bias);
      } else {
        Keep(tile.rows, bias);
        // Waiting pays where the products are what takes time.
        if (tile.rows <= kStoreRows || steps_ < kStoreParts) StoreRest();
      }
    }
    if constexpr (!kGather) StoreRest();
  }

 private:
  static constexpr bool kGather = kWay == Way::kGathered;
  static constexpr int kWideSums = kWideRows / 2;

  // All steps of a tile: beside what is written, with one switch a step; then in a loop for each size.
  __device__ __forceinline__ void Multiply(int granules, const uint8_t* stage) {
    step_ = 0;
#pragma unroll 1
    for (;;) {
      VisitSize<1, kMostGranules>(granules, [&]<int N>() __attribute__((always_inline)) { Start<N>(stage); });
      EndStep();
      if constexpr (!kGather) StoreNext();
      if (step_ == steps_ || !Pending::Any(memory_.shared)) break;
      stage = AwaitStage();
    }
    VisitSize<1, kMostGranules>(granules, [&]<int N>() __attribute__((always_inline)) {
#pragma unroll 1
      while (step_ < steps_) {
        Start<N>(AwaitStage());
        EndStep();
      }
    });
    AwaitSums<kMostSums>();
  }

  // Its sums leave no registers for what waits to be written.
  __device__ __forceinline__ void DoWide(const Tile& tile, Bias bias, const uint8_t* stage) {
    StoreRest();
    step_ = 0;
#pragma unroll 1
    for (;;) {
      StartWide(stage);
      EndStep();
      if (step_ == steps_) break;
      stage = AwaitStage();
    }
    AwaitSums<kWideSums>();
    Pending::Set(memory_.shared, BoxOf<kForm>(args_, tile));
    StoreNow(bias);
    // What a tile of other sizes does not use holds no registers there.
    pending_ = {};
#pragma unroll
    for (int i = kMostSums; i < kWideSums; ++i) sum_[i] = 0;
  }

  template <int kCount>
  __device__ __forceinline__ void AwaitSums() {
    WaitWgmma<0>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum_[i])::"memory");  // nothing reads them before the wait
    ReleaseBefore();
  }

  __device__ __forceinline__ void Keep(int rows, Bias bias) {
    PackPart<T, 0>(sum_, bias, pending_.values);
    if (rows > kStoreRows) PackPart<T, 1>(sum_, bias, pending_.values);
    if (rows > 2 * kStoreRows) PackPart<T, 2>(sum_, bias, pending_.values);
    if (rows > 3 * kStoreRows) PackPart<T, 3>(sum_, bias, pending_.values);
  }

  __device__ __forceinline__ void StoreNow(Bias bias) {
#pragma unroll 1
    while (Pending::Any(memory_.shared)) {
      PackPart<T, 0>(sum_, bias, pending_.values);
      StorePart<T, kForm>(args_, memory_.shared, pending_);
      MoveUp<kStoreRows / 2>(sum_);
    }
  }

  __device__ __forceinline__ const uint8_t* AwaitStage() {
    Wait(memory_.Full(ring_.stage), ring_.phase);
    if constexpr (kGather) FenceAsyncProxy();
    return memory_.Stage(ring_.stage);
  }

  // The lane that will release the stage here reads, for all.
  __device__ __forceinline__ Tile ReadTile() const {
    const int lane = cluster_.rank;
    Tile tile{};
    if (threadIdx.x % 32 == lane) tile = memory_.shared.tiles[ring_.stage];
    return {__shfl_sync(~0u, tile.slot, lane), __shfl_sync(~0u, tile.weight_tile, lane), __shfl_sync(~0u, tile.begin, lane),
            __shfl_sync(~0u, tile.rows, lane)};
  }

  // sum = or, after a tile's first step, += weights x rows^T. It goes on beside what follows.
  template <int N>
  __device__ __forceinline__ void Start(const uint8_t* stage) {
    constexpr bool kAcross = kForm == Form::kAcross;
    const uint64_t weights = Descriptor(stage + group_ * 64 * kRowBytes);
    const uint64_t rows = Descriptor(stage + kWeightBytes);
    FenceWgmma();
#pragma unroll
    for (int part = 0; part < kTileDepth / 16; ++part) {
      Wgmma<T, N, kAcross>::Run(sum_, weights + (kAcross ? 128 : 2) * part, rows + 2 * part, step_ > 0 || part > 0);
    }
    CommitWgmma();
  }

  __device__ __forceinline__ void StartWide(const uint8_t* stage) {
    constexpr bool kAcross = kForm == Form::kAcross;
    const uint64_t weights = Descriptor(stage + group_ * 64 * kRowBytes);
    const uint64_t low = Descriptor(stage + kWeightBytes);
    const uint64_t high = Descriptor(stage + kWeightBytes + kMostRows * kRowBytes);
    FenceWgmma();
#pragma unroll
    for (int part = 0; part < kTileDepth / 16; ++part) {
      const uint64_t weight = weights + (kAcross ? 128 : 2) * part;
      const bool add = step_ > 0 || part > 0;
      Wgmma<T, kMostRows, kAcross>::Run(sum_, weight, low + 2 * part, add);
      Wgmma<T, kWideRows - kMostRows, kAcross>::Run(sum_ + kMostSums, weight, high + 2 * part, add);
    }
    CommitWgmma();
  }

  __device__ __forceinline__ void StoreNext() {
    StorePart<T, kForm>(args_, memory_.shared, pending_);
    MoveUp<kStoreRows / 4>(pending_.values);
  }

  __device__ __forceinline__ void StoreRest() {
#pragma unroll 1
    while (Pending::Any(memory_.shared)) StoreNext();
  }

  // The step before is done then.
  __device__ __forceinline__ void EndStep() {
    WaitWgmma<1>();
    if (step_ > 0) ReleaseBefore();
    ring_.Next();
    ++step_;
  }

  // The stage before the ring's.
  __device__ __forceinline__ void ReleaseBefore() {
    const int stage = (ring_.stage == 0 ? ring_.stages : ring_.stage) - 1;
    const int lane = threadIdx.x % 32;
    if (lane == cluster_.rank) {
      Arrive(memory_.Empty(stage));
    } else if (lane < cluster_.size) {
      ArriveAtPeer(memory_.Empty(stage), lane);
    }
  }

  const KernelArgs& args_;
  const Memory& memory_;
  const Cluster cluster_;
  const int group_;
  const int steps_;
  Ring ring_;
  int step_ = 0;
  float sum_[kWay == Way::kWide ? kWideSums : kMostSums] = {};
  Pending pending_;
};

}  // namespace autoep::ops::cuda::hopper

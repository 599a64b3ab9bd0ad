// SPDX-License-Identifier: Apache-2.0
// The multiplying warpgroups of the grouped product.
#pragma once

#include <algorithm>

#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"
#include "plugin/ops/grouped/hopper_outgoing.cuh"
#include "plugin/ops/grouped/hopper_store.cuh"
#include "plugin/ops/grouped/wgmma.cuh"

namespace autoep::ops::cuda::hopper {

// A multiplying warpgroup. It does little beside its products, for a warp that starts them waits until the tensor cores take them:
// what else it does leaves them idle.
template <typename T, Form kForm, Way kWay>
class Multiplier {
 public:
  __device__ __forceinline__ Multiplier(const KernelArgs& args, const OutMaps& maps, const Memory& memory, Cluster cluster)
      : args_(args),
        memory_(memory),
        cluster_(cluster),
        group_(threadIdx.x / kGroupThreads - 1),
        steps_(Steps(args.depth)),
        ring_{args.cut.stages},
        out_(args, maps, memory, group_) {}

  __device__ __forceinline__ void Run() {
    for (;;) {
      const uint8_t* stage = AwaitStage();
      const Tile tile = ReadTile();
      if (tile.rows == 0) break;
      if constexpr (kForm == Form::kGradient) steps_ = Steps(memory_.groups.Rows(tile.slot));
      Bias bias{};
      if constexpr (kForm == Form::kGated || kForm == Form::kPlain) bias = BiasOf<T, kForm>(args_, tile, group_);
      if constexpr (kWay == Way::kWide) {
        if (tile.rows > kMostRows) {
          DoWide(tile, bias, stage);
          continue;
        }
      }
      Multiply((tile.rows + kGranule - 1) / kGranule, stage);
      out_.template Take<kUsualSums>(sum_, tile, bias);
    }
    out_.End();
  }

 private:
  static constexpr bool kGather = kWay == Way::kGathered;
  static constexpr bool kAcross = kForm == Form::kAcross || kForm == Form::kGradient;
  static constexpr int kAcrossStride = 128;  // of 16 values of K
  static constexpr int kWeightStride = kAcross ? kAcrossStride : 2;
  static constexpr int kUsualSums = std::min(kSums<kWay>, kMostSums);  // of all but a wide tile

  // All steps of a tile: beside what goes out, with one switch a step; then in a loop for each size.
  __device__ __forceinline__ void Multiply(int granules, const uint8_t* stage) {
    step_ = 0;
    if constexpr (kInParts<kWay>) {
#pragma unroll 1
      while (out_.Any() && step_ < steps_) {
        Visit<1, kMostGranules>(granules, [&]<int kCount>() __attribute__((always_inline)) { Start<kCount * kGranule>(stage); });
        EndStep();
        out_.LaySome();
        if (step_ < steps_) stage = AwaitStage();
      }
    }
    if (step_ < steps_) {
      Visit<1, kGranules<kWay>>(granules, [&]<int kCount>() __attribute__((always_inline)) {
        Accumulate([&](const uint8_t* from) __attribute__((always_inline)) { Start<kCount * kGranule>(from); }, stage);
      });
    }
    AwaitSums<kUsualSums>();
  }

  __device__ __forceinline__ void DoWide(const Tile& tile, Bias bias, const uint8_t* stage) {
    const int granules = (tile.rows + kGranule - 1) / kGranule;
    step_ = 0;
#pragma unroll 1
    for (;;) {
      Visit<kMostGranules + 1, kWideRows / kGranule>(
          granules, [&]<int kCount>() __attribute__((always_inline)) { StartWide<kCount * kGranule>(stage); });
      EndStep();
      if (out_.Any()) out_.LaySome();
      if (step_ == steps_) break;
      stage = AwaitStage();
    }
    AwaitSums<kSums<kWay>>();
    out_.template Take<kSums<kWay>>(sum_, tile, bias);
    // Tiles of other sizes do not use these, which hold no registers there.
#pragma unroll
    for (int i = kMostSums; i < kSums<kWay>; ++i) sum_[i] = 0;
  }

  template <typename Start>
  __device__ __forceinline__ void Accumulate(const Start& start, const uint8_t* stage) {
#pragma unroll 1
    for (;;) {
      start(stage);
      EndStep();
      if (step_ == steps_) break;
      stage = AwaitStage();
    }
  }

  template <int kCount>
  __device__ __forceinline__ void AwaitSums() {
    WaitWgmma<0>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum_[i])::"memory");  // nothing reads them before the wait
    ReleaseBefore();
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
    return OfLane(tile, lane);
  }

  // sum = or, after a tile's first step, += weights x rows^T. It goes on beside what follows.
  template <int N>
  __device__ __forceinline__ void Start(const uint8_t* stage) {
    constexpr bool kGradient = kForm == Form::kGradient;
    const uint64_t weights = Descriptor(stage + group_ * 64 * kRowBytes);
    const uint64_t rows = Descriptor<kGradient ? kChunkBytes : 16>(stage + kWeightBytes);
    FenceWgmma();
#pragma unroll
    for (int part = 0; part < kTileDepth / 16; ++part) {
      Wgmma<T, N, kAcross, kGradient>::Run(sum_, weights + kWeightStride * part, rows + (kGradient ? kAcrossStride : 2) * part,
                                           step_ > 0 || part > 0);
    }
    CommitWgmma();
  }

  template <int N>
  __device__ __forceinline__ void StartWide(const uint8_t* stage) {
    const uint64_t weights = Descriptor(stage + group_ * 64 * kRowBytes);
    const uint64_t low = Descriptor(stage + kWeightBytes);
    const uint64_t high = Descriptor(stage + kWeightBytes + kMostRows * kRowBytes);
    FenceWgmma();
#pragma unroll
    for (int part = 0; part < kTileDepth / 16; ++part) {
      const uint64_t weight = weights + kWeightStride * part;
      const bool add = step_ > 0 || part > 0;
      Wgmma<T, kMostRows, kAcross, false>::Run(sum_, weight, low + 2 * part, add);
      Wgmma<T, N - kMostRows, kAcross, false>::Run(sum_ + kMostSums, weight, high + 2 * part, add);
    }
    CommitWgmma();
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
  int steps_;
  Ring ring_;
  int step_ = 0;
  float sum_[kSums<kWay>] = {};
  Outgoing<T, kForm, kWay> out_;
};

}  // namespace autoep::ops::cuda::hopper

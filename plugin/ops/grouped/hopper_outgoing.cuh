// SPDX-License-Identifier: Apache-2.0
// A multiplying warpgroup's tiles on their way into shared memory: the bias is added, and sums are rounded. Small tiles are stored
// at once, by the warpgroup itself. Others go out in parts, which a warp that stores takes one by one: the first at the tile's end,
// the others from registers, beside later steps.
#pragma once

#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"
#include "plugin/ops/grouped/hopper_store.cuh"

namespace autoep::ops::cuda::hopper {

// Calls run.operator()<value>(), of [kLow, kHigh].
template <int kLow, int kHigh, typename Run>
__device__ __forceinline__ void Visit(int value, const Run& run) {
  if constexpr (kLow == kHigh) {
    run.template operator()<kLow>();
  } else if (value <= (kLow + kHigh) / 2) {
    Visit<kLow, (kLow + kHigh) / 2>(value, run);
  } else {
    Visit<(kLow + kHigh) / 2 + 1, kHigh>(value, run);
  }
}

// Of the two 8-row halves of a warp's weight rows.
struct Bias {
  float low, high;
};

// A weight row's bias.
template <typename T>
__device__ __forceinline__ float BiasAt(const KernelArgs& args, int slot, int width, int row, int limit) {
  if (row >= limit) return 0;
  return static_cast<float>(static_cast<const T*>(args.bias)[int64_t{slot} * width + row]);
}

template <typename T, Form kForm>
__device__ __forceinline__ Bias BiasOf(const KernelArgs& args, const Tile& tile, int group) {
  if (args.bias == nullptr) return {};
  constexpr bool kGated = kForm == Form::kGated;
  const int width = kGated ? 2 * args.columns : args.columns;
  const int thread = threadIdx.x % kGroupThreads;
  const int column = FirstColumn<kForm>(tile, group) + thread / 32 * 8 * (kGated ? 1 : 2) + thread % 32 / 4;
  return {BiasAt<T>(args, tile.slot, width, column, args.columns),
          kGated ? BiasAt<T>(args, tile.slot, width, args.columns + column, width)
                 : BiasAt<T>(args, tile.slot, width, column + 8, args.columns)};
}

// A multiplying warpgroup's sums of 16 rows, rounded: [2j + h] is wgmma's d[4j + 2h] and d[4j + 2h + 1]; gated, h 0 is the gate.
struct Granule {
  uint32_t values[4];

  template <typename T>
  __device__ __forceinline__ static Granule Of(const float* sum) {
    return {Pack<T>(sum[0], sum[1]), Pack<T>(sum[2], sum[3]), Pack<T>(sum[4], sum[5]), Pack<T>(sum[6], sum[7])};
  }

  // As row `row` and on. upper: from gates to the values that go up with them, in bytes.
  template <Form kForm>
  __device__ __forceinline__ void LayDown(uint8_t* to, int upper, int row) const {
    const int warp = threadIdx.x % kGroupThreads / 32;
    const int lane = threadIdx.x % 32;
    const int lane_row = lane / 16 * 8 + lane % 8;
    const int half = lane / 8 % 2;  // of the warp's weight rows
    const int place = kForm == Form::kGated ? half * upper + PartPlace<kForm>(lane_row, warp)
                                            : PartPlace<kForm>(lane_row, 2 * warp + half);
    StoreTransposed(SharedAddress(to) + place + row * kPartPitch<kForm>, values[0], values[1], values[2], values[3]);
  }
};

template <typename T, Form kForm, Way kWay>
class Outgoing {
 public:
  __device__ __forceinline__ Outgoing(const KernelArgs& args, const OutMaps& maps, const Memory& memory, int group)
      : args_(args), maps_(maps), memory_(memory), group_(group) {}

  // A tile's sums, kCount of them.
  template <int kCount>
  __device__ __forceinline__ void Take(float* sum, const Tile& tile, Bias bias) {
    if constexpr (kInParts<kWay>) {
      Keep<kCount>(sum, tile, bias);
    } else {
      StoreWhole(sum, tile, bias);
    }
  }

  // Whether parts wait in registers.
  __device__ __forceinline__ bool Any() const { return left_ > 0; }

  // The next part, if there is room for it.
  __device__ __forceinline__ void LaySome() {
    if (__all_sync(~0u, Passed(&memory_.shared.out_empty[group_], out_phase_))) LayNext();
  }

  // There are no more tiles.
  __device__ __forceinline__ void End() {
    if constexpr (kInParts<kWay>) {
      LayAll();
      AwaitRoom();
      Announce({});
    } else {
      if (First()) WaitForStores();
    }
  }

 private:
  static constexpr int kGranulesHere = kSums<kWay> / 8;
  static constexpr int kPartGranules = kPartRows<kWay> / kGranule;

  __device__ __forceinline__ static bool First() { return threadIdx.x % kGroupThreads == 0; }

  template <int kCount>
  __device__ __forceinline__ void AddBias(float* sum, Bias bias) const {
    if (args_.bias == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += i % 4 < 2 ? bias.low : bias.high;
  }

  // The first part goes out at once.
  template <int kCount>
  __device__ __forceinline__ void Keep(float* sum, const Tile& tile, Bias bias) {
    LayAll();
    AddBias<kCount>(sum, bias);
    AwaitRoom();
    uint8_t* to = memory_.Out(group_);
#pragma unroll
    for (int i = 0; i < kCount / 8; ++i) {
      if (i * kGranule >= tile.rows) break;
      const Granule granule = Granule::Of<T>(sum + 8 * i);
      if (i < kPartGranules) {
        granule.template LayDown<kForm>(to, memory_.out_bytes / 2, i * kGranule);
      } else {
        waiting_[i - kPartGranules] = granule;
      }
    }
    if (First()) memory_.shared.out_tiles[group_] = tile;
    next_ = 0;
    left_ = (tile.rows + kPartRows<kWay> - 1) / kPartRows<kWay>;
    AnnounceNext();
  }

  __device__ __forceinline__ void LayAll() {
#pragma unroll 1
    while (left_ > 0) {
      AwaitRoom();
      LayNext();
    }
  }

  __device__ __forceinline__ void LayNext() {
    uint8_t* to = memory_.Out(group_);
    Visit<1, (kGranulesHere - 1) / kPartGranules>(next_, [&]<int kPart>() __attribute__((always_inline)) {
#pragma unroll
      for (int i = 0; i < kPartGranules && kPart * kPartGranules + i < kGranulesHere; ++i) {
        waiting_[(kPart - 1) * kPartGranules + i].template LayDown<kForm>(to, memory_.out_bytes / 2, i * kGranule);
      }
    });
    AnnounceNext();
  }

  __device__ __forceinline__ void AnnounceNext() {
    FenceAsyncProxy();
    const int row = next_ * kPartRows<kWay>;
    const Tile& tile = memory_.shared.out_tiles[group_];
    Announce(First() ? OutPart{tile.begin + row, min(kPartRows<kWay>, tile.rows - row), FirstColumn<kForm>(tile, group_)}
                     : OutPart{});
    ++next_;
    --left_;
  }

  // The first thread's part, to the warp that stores.
  __device__ __forceinline__ void Announce(const OutPart& part) {
    if (First()) memory_.shared.out_parts[group_] = part;
    __syncwarp();
    if (threadIdx.x % 32 == 0) Arrive(&memory_.shared.out_full[group_]);
    out_phase_ ^= 1;
  }

  __device__ __forceinline__ void AwaitRoom() { Wait(&memory_.shared.out_empty[group_], out_phase_); }

  __device__ __forceinline__ void StoreWhole(float* sum, const Tile& tile, Bias bias) {
    const auto sync = [&] { SyncThreads(1 + group_, kGroupThreads); };
    AddBias<kSums<kWay>>(sum, bias);
    if (First()) WaitForStoresReading();
    sync();
    uint8_t* to = memory_.Out(group_);
#pragma unroll
    for (int i = 0; i < kGranulesHere; ++i) {
      if (i * kGranule >= tile.rows) break;
      Granule::Of<T>(sum + 8 * i).template LayDown<kForm>(to, memory_.out_bytes / 2, i * kGranule);
    }
    FenceAsyncProxy();
    sync();
    StoreOut<T, kForm, kGroupThreads>(args_, maps_, to, memory_.out_bytes / 2,
                                      {tile.begin, tile.rows, FirstColumn<kForm>(tile, group_)}, sync);
  }

  const KernelArgs& args_;
  const OutMaps maps_;
  const Memory& memory_;
  const int group_;
  uint32_t out_phase_ = 1;
  int next_ = 0, left_ = 0;  // parts of the tile before
  Granule waiting_[kGranulesHere > kPartGranules ? kGranulesHere - kPartGranules : 1];
};

}  // namespace autoep::ops::cuda::hopper

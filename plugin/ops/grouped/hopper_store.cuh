// SPDX-License-Identifier: Apache-2.0
// From sums to memory. A multiplying warpgroup adds the bias, rounds, and lays its rows down in shared memory; the copy engine
// writes them from there, after the activation. Of small tiles the warpgroup does all of this itself, at once. Others go out in
// parts, beside the next tile's products: a warp that stores takes each one, so that those that multiply have little else to do.
//
// What a warpgroup lays down is 64 weight rows wide: a row of 128 bytes for each of the tile's rows; gated, rows of 64 bytes, gates
// first and after them the values that go up with them. Swizzled as the copy engine has it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "plugin/ops/experts/activation.cuh"
#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"

namespace autoep::ops::cuda::hopper {

template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}

template <typename T>
__device__ __forceinline__ float2 Unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  } else {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000)};
  }
}

template <Form kForm>
inline constexpr int kPartPitch = kForm == Form::kGated ? kOutPitch / 2 : kOutPitch;  // bytes of a row

// Where a row's 16 bytes number `piece` lie.
template <Form kForm>
__device__ __forceinline__ int PartPlace(int row, int piece) {
  const int turned = kForm == Form::kGated ? piece ^ (row / 2 % 4) : piece ^ (row % 8);
  return row * kPartPitch<kForm> + turned * 16;
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

// Where the copy engine writes.
struct OutMaps {
  const CUtensorMap& out;
  const CUtensorMap& gates;  // of the values before the activation, and those that go up with them
  const CUtensorMap& ups;
};

// One thread: rows to their columns.
template <Form kForm>
__device__ __forceinline__ void StoreRows(const CUtensorMap& map, const uint8_t* from, const OutPart& part) {
  for (int row = 0; row < part.rows; row += kStoreBox) {
    Store4(from + row * kPartPitch<kForm>, &map, part.column, kGroupEnd - part.rows + row, part.begin + part.rows, kGroupEnd);
  }
}

// act(gate) * up of two rows.
template <typename T, contract::Activation kKind>
__device__ __forceinline__ uint32_t ActivatePair(const KernelArgs& args, uint32_t gates, uint32_t ups) {
  const ActivationCall call{{kKind, true, args.shift}, args.alpha, args.limit};
  const float2 gate = Unpack<T>(gates), up = Unpack<T>(ups);
  return Pack<T>(Gated(call, gate.x, up.x), Gated(call, gate.y, up.y));
}

// kThreads threads: in the place of the gates.
template <typename T, int kThreads>
__device__ __forceinline__ void ActivateRows(const KernelArgs& args, uint8_t* gates_at, int upper, int rows) {
  constexpr int kPieces = kPartPitch<Form::kGated> / 16;
  const int piece = threadIdx.x % kPieces;
  VisitActivation(args.activation, [&]<contract::Activation kKind>() {
#pragma unroll 1
    for (int row = threadIdx.x % kThreads / kPieces; row < rows; row += kThreads / kPieces) {
      uint8_t* place = gates_at + PartPlace<Form::kGated>(row, piece);
      uint4 gates = *reinterpret_cast<const uint4*>(place);
      const uint4 ups = *reinterpret_cast<const uint4*>(place + upper);
      gates.x = ActivatePair<T, kKind>(args, gates.x, ups.x);
      gates.y = ActivatePair<T, kKind>(args, gates.y, ups.y);
      gates.z = ActivatePair<T, kKind>(args, gates.z, ups.z);
      gates.w = ActivatePair<T, kKind>(args, gates.w, ups.w);
      *reinterpret_cast<uint4*>(place) = gates;
    }
  });
}

// kThreads threads: rows that lie at `from`, and that all have seen. The first thread's stores read them until WaitForStoresReading
// says that they have.
template <typename T, Form kForm, int kThreads, typename Sync>
__device__ __forceinline__ void StoreOut(const KernelArgs& args, const OutMaps& maps, uint8_t* from, int upper, const OutPart& part,
                                         const Sync& sync) {
  const bool first = threadIdx.x % kThreads == 0;
  if constexpr (kForm == Form::kGated) {
    if (args.keeps_hidden) {
      if (first) {
        StoreRows<kForm>(maps.gates, from, part);
        StoreRows<kForm>(maps.ups, from + upper, part);
        EndStores();
        WaitForStoresReading();
      }
      sync();
    }
    ActivateRows<T, kThreads>(args, from, upper, part.rows);
    FenceAsyncProxy();
    sync();
  }
  if (first) {
    StoreRows<kForm>(maps.out, from, part);
    EndStores();
  }
}

// A warp: the parts of one multiplying warpgroup.
template <typename T, Form kForm>
__device__ __forceinline__ void StoreParts(const KernelArgs& args, const OutMaps& maps, const Memory& memory, int group) {
  const bool first = threadIdx.x % 32 == 0;
  for (uint32_t phase = 0;; phase ^= 1) {
    Wait(&memory.shared.out_full[group], phase);
    const OutPart part = memory.shared.out_parts[group];
    __syncwarp();  // all have read it before another comes
    if (part.rows == 0) break;
    StoreOut<T, kForm, 32>(args, maps, memory.Out(group), memory.out_bytes / 2, part, [] { __syncwarp(); });
    if (first) {
      WaitForStoresReading();
      Arrive(&memory.shared.out_empty[group]);
    }
  }
  if (first) WaitForStores();
}

}  // namespace autoep::ops::cuda::hopper

// SPDX-License-Identifier: Apache-2.0
// From shared memory to where it belongs: a tile's rows, or a part of them, that a multiplying warpgroup has laid down
// (hopper_outgoing.cuh) are activated in place, and written by the copy engine.
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
    // The lane that will make room for another one reads, for all.
    const OutPart part = OfLane(first ? memory.shared.out_parts[group] : OutPart{}, 0);
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

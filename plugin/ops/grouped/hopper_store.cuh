// SPDX-License-Identifier: Apache-2.0
// What a multiplying warpgroup of the grouped product does with its sums: bias, activation, and the way out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "plugin/ops/experts/activation.cuh"
#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"
#include "plugin/ops/grouped/wgmma.cuh"

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
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  }
}

// What follows from the result is not kept in registers from one time to the next.
__device__ __forceinline__ int Anew(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Where a thread stands.
struct Place {
  int group, warp, lane, thread;  // the multiplying warpgroup, and in it

  __device__ __forceinline__ static Place Here() {
    const int index = Anew(threadIdx.x);
    return {index / kGroupThreads - 1, index % kGroupThreads / 32, index % 32, index % kGroupThreads};
  }
};

// A tile's sums on their way out, as pairs of 16-bit values: they leave while the next tile is multiplied. Where they belong is in
// shared memory, a copy for each warp.
struct Pending {
  uint32_t values[kMostSums / 2];  // [2j + h] of wgmma's d[4j + 2h] and d[4j + 2h + 1]

  __device__ __forceinline__ static Box& Of(Shared& shared) { return shared.pending[Anew(threadIdx.x) / 32 - kGroupThreads / 32]; }
  __device__ __forceinline__ static bool Any(Shared& shared) { return Of(shared).rows > 0; }
  __device__ __forceinline__ static void Set(Shared& shared, const Box& box) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Of(shared) = box;
    __syncwarp();
  }
};

// Transposes kTiles 8x8 tiles a warp and 8 rows: tile(j, m) is columns 8 * (kTiles * warp + m) of rows 8j. Writes rows
// [0, rows), of at most kStoreRows, and columns [0, columns) to `to`, in 16-byte pieces.
template <int kTiles, typename MakeTile>
__device__ __forceinline__ void Write(Shared& shared, const Place& place, MakeTile tile, uint8_t* to, int64_t pitch, int rows,
                                      int columns) {
  constexpr int kPieces = 4 * kTiles;  // 16 bytes each, in a row of the four warps
  constexpr int kPitch = kPieces * 16 + 16;
  const uint32_t staging = SharedAddress(shared.out[place.group]);
  const uint32_t mine =
      staging + (place.lane % 8) * kPitch + place.warp * kTiles * 16 + (kTiles == 2 ? (place.lane / 8 % 2) * 16 : 0);
  SyncThreads(1 + place.group, kGroupThreads);
#pragma unroll
  for (int j = 0; j < kStoreRows / 8; ++j) {
    if constexpr (kTiles == 2) {
      StoreTransposed(mine + 8 * j * kPitch, tile(j, 0), tile(j, 1));
    } else {
      StoreTransposed(mine + 8 * j * kPitch, tile(j, 0));
    }
  }
  SyncThreads(1 + place.group, kGroupThreads);
#pragma unroll
  for (int turn = 0; turn < kStoreRows * kPieces / kGroupThreads; ++turn) {
    const int piece = turn * kGroupThreads + place.thread;
    const int row = piece / kPieces;
    const int column = piece % kPieces * 8;
    if (row < rows && column < columns) {
      *reinterpret_cast<uint4*>(to + row * pitch + column * 2) =
          *reinterpret_cast<const uint4*>(shared.out[place.group] + row * kPitch + column * 2);
    }
  }
}

// A weight row's bias.
template <typename T>
__device__ __forceinline__ float BiasAt(const KernelArgs& args, int slot, int width, int row, int limit) {
  if (args.bias == nullptr || row >= limit) return 0;
  return static_cast<float>(static_cast<const T*>(args.bias)[int64_t{slot} * width + row]);
}

// act(gate) * up of two rows.
template <typename T, contract::Activation kKind>
__device__ __forceinline__ uint32_t ActivatePair(const KernelArgs& args, uint32_t gates, uint32_t ups) {
  const ActivationCall call{{kKind, true, args.shift}, args.alpha, args.limit};
  const float2 gate = Unpack<T>(gates), up = Unpack<T>(ups);
  return Pack<T>(Gated(call, gate.x, up.x), Gated(call, gate.y, up.y));
}

// The first kStoreRows rows, if there are any.
template <typename T, Form kForm>
__device__ __forceinline__ void StorePart(const KernelArgs& args, Shared& shared, Pending& pending) {
  const Box box = Pending::Of(shared);
  const int rows = box.rows;
  if (rows <= 0) return;
  const Place place = Place::Here();
  const auto value = [&](int j, int half) { return pending.values[2 * j + half]; };
  const int64_t row = box.begin;
  const int width = Anew(args.columns);
  const int columns = width - box.first;
  const int64_t pitch = width * int64_t{2};
  uint8_t* to = static_cast<uint8_t*>(args.out) + row * pitch + box.first * 2;
  if constexpr (kForm == Form::kGated) {
    if (args.hidden != nullptr) {
      uint8_t* hidden = static_cast<uint8_t*>(args.hidden) + row * 2 * pitch + box.first * 2;
      Write<1>(
          shared, place, [&](int j, int) { return value(j, 0); }, hidden, 2 * pitch, rows, columns);
      Write<1>(
          shared, place, [&](int j, int) { return value(j, 1); }, hidden + pitch, 2 * pitch, rows, columns);
    }
    VisitActivation(args.activation, [&]<contract::Activation kKind>() {
#pragma unroll
      for (int j = 0; j < kStoreRows / 8; ++j) pending.values[2 * j] = ActivatePair<T, kKind>(args, value(j, 0), value(j, 1));
    });
    Write<1>(
        shared, place, [&](int j, int) { return value(j, 0); }, to, pitch, rows, columns);
  } else {
    Write<2>(shared, place, value, to, pitch, rows, columns);
  }
  Pending::Set(shared, {box.begin + kStoreRows, box.first, rows - kStoreRows});
}

// Of the two 8-row halves of a warp's weight rows.
struct Bias {
  float low, high;
};

template <Form kForm>
__device__ __forceinline__ int FirstColumn(const Tile& tile, int group) {
  return tile.weight_tile * kTileColumns<kForm> + group * (kTileColumns<kForm> / 2);
}

template <typename T, Form kForm>
__device__ __forceinline__ Bias BiasOf(const KernelArgs& args, const Tile& tile) {
  const Place place = Place::Here();
  constexpr bool kGated = kForm == Form::kGated;
  const int width = kGated ? 2 * args.columns : args.columns;
  const int column = FirstColumn<kForm>(tile, place.group) + place.warp * 8 * (kGated ? 1 : 2) + place.lane / 4;
  return {BiasAt<T>(args, tile.slot, width, column, args.columns),
          kGated ? BiasAt<T>(args, tile.slot, width, args.columns + column, width)
                 : BiasAt<T>(args, tile.slot, width, column + 8, args.columns)};
}

// Brings the next values to the front.
template <int kStep, typename V, int kCount>
__device__ __forceinline__ void MoveUp(V (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i + kStep < kCount; ++i) values[i] = values[i + kStep];
}

// With their bias, the sums of rows kStoreRows * kPart and on.
template <typename T, int kPart, int kCount>
__device__ __forceinline__ void PackPart(const float (&sum)[kCount], Bias bias, uint32_t (&values)[kMostSums / 2]) {
#pragma unroll
  for (int j = kPart * kStoreRows / 8; j < (kPart + 1) * kStoreRows / 8; ++j) {
    values[2 * j] = Pack<T>(sum[4 * j] + bias.low, sum[4 * j + 1] + bias.low);
    values[2 * j + 1] = Pack<T>(sum[4 * j + 2] + bias.high, sum[4 * j + 3] + bias.high);
  }
}

template <Form kForm>
__device__ __forceinline__ Box BoxOf(const KernelArgs& args, const Tile& tile) {
  const int first = FirstColumn<kForm>(tile, Place::Here().group);
  return {tile.begin, first, first < args.columns ? tile.rows : 0};
}

}  // namespace autoep::ops::cuda::hopper

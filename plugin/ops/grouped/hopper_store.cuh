// SPDX-License-Identifier: Apache-2.0
// What a multiplying warpgroup of the grouped product does with its sums: bias, activation, and the way out.
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

// What one warpgroup writes of a tile.
struct Out {
  uint8_t* staging;
  int barrier;  // of this warpgroup
  int warp, lane, thread;
};

// Transposes kTiles 8x8 tiles a warp and 8 rows: tile(j, m) is columns 8 * (kTiles * warp + m) of rows 8j. Writes rows
// [0, rows) and columns [0, columns) to `to`, in 16-byte pieces.
template <int N, int kTiles, typename MakeTile>
__device__ __forceinline__ void Write(const Out& out, MakeTile tile, uint8_t* to, int64_t pitch, int rows, int columns) {
  constexpr int kPieces = 4 * kTiles;  // 16 bytes each, in a row of the four warps
  constexpr int kPitch = kPieces * 16 + 16;
  const uint32_t staging = SharedAddress(out.staging);
  const uint32_t mine = staging + (out.lane % 8) * kPitch + out.warp * kTiles * 16 + (kTiles == 2 ? (out.lane / 8 % 2) * 16 : 0);
#pragma unroll
  for (int base = 0; base < N; base += kStoreRows) {
    constexpr int kMost = N < kStoreRows ? N : kStoreRows;
    SyncThreads(out.barrier, kGroupThreads);
#pragma unroll
    for (int row = 0; row < kMost; row += 8) {
      if (base + row < N) {
        const int j = (base + row) / 8;
        if constexpr (kTiles == 2) {
          StoreTransposed(mine + row * kPitch, tile(j, 0), tile(j, 1));
        } else {
          StoreTransposed(mine + row * kPitch, tile(j, 0));
        }
      }
    }
    SyncThreads(out.barrier, kGroupThreads);
    const int here = min(min(kStoreRows, N - base), rows - base);
    for (int piece = out.thread; piece < here * kPieces; piece += kGroupThreads) {
      const int row = piece / kPieces;
      const int column = piece % kPieces * 8;
      if (column < columns) {
        *reinterpret_cast<uint4*>(to + (base + row) * pitch + column * 2) =
            *reinterpret_cast<const uint4*>(out.staging + row * kPitch + column * 2);
      }
    }
  }
}

// A weight row's bias.
template <typename T>
__device__ __forceinline__ float BiasAt(const KernelArgs& args, int slot, int width, int row, int limit) {
  if (args.bias == nullptr || row >= limit) return 0;
  return static_cast<float>(static_cast<const T*>(args.bias)[int64_t{slot} * width + row]);
}

// Of each pair of gate and up, the gate's place gets act(gate) * up. One kind for all of them, so that they overlap.
template <contract::Activation kKind, int kValues>
__device__ __forceinline__ void ActivateSums(const KernelArgs& args, float (&sum)[kValues]) {
  const ActivationCall call{{kKind, true}, args.alpha, args.limit};
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
#pragma unroll
    for (int k = i; k < i + 2; ++k) {
      if constexpr (kKind == contract::Activation::kClampedSwiglu) {
        const float gate = ClampAbove(sum[k], args.limit);
        const float up = sum[k + 2] < -args.limit ? -args.limit : ClampAbove(sum[k + 2], args.limit);
        sum[k] = gate * Sigmoid(args.alpha * gate) * (up + args.shift);
      } else {
        sum[k] = Activate(call, sum[k]).value * sum[k + 2];
      }
    }
  }
}

template <typename T, Form kForm, int N>
__device__ __forceinline__ void Finish(const KernelArgs& args, const Tile& tile, const Out& out, int group, float (&sum)[N / 2]) {
  constexpr bool kGated = kForm == Form::kGated;
  constexpr int kTiles = kGated ? 1 : 2;
  constexpr int kGroupColumns = kTileColumns<kForm> / 2;
  const int first = tile.weight_tile * kTileColumns<kForm> + group * kGroupColumns;
  const int columns = args.columns - first;
  if (columns <= 0) return;
  const int width = kGated ? 2 * args.columns : args.columns;
  const int column = first + out.warp * 8 * kTiles + out.lane / 4;
  const float low_bias = BiasAt<T>(args, tile.slot, width, column, args.columns);
  const float high_bias = kGated ? BiasAt<T>(args, tile.slot, width, args.columns + column, width)
                                 : BiasAt<T>(args, tile.slot, width, column + 8, args.columns);
#pragma unroll
  for (int i = 0; i < N / 2; i += 4) {
    sum[i] += low_bias;
    sum[i + 1] += low_bias;
    sum[i + 2] += high_bias;
    sum[i + 3] += high_bias;
  }
  const auto value = [&](int j, int half) { return Pack<T>(sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]); };
  uint8_t* to = static_cast<uint8_t*>(args.out) + (int64_t{tile.begin} * args.columns + first) * 2;
  const int64_t pitch = args.columns * int64_t{2};
  if constexpr (kGated) {
    if (args.hidden != nullptr) {
      uint8_t* hidden = static_cast<uint8_t*>(args.hidden) + (int64_t{tile.begin} * width + first) * 2;
      Write<N, 1>(
          out, [&](int j, int) { return value(j, 0); }, hidden, 2 * pitch, tile.rows, columns);
      Write<N, 1>(
          out, [&](int j, int) { return value(j, 1); }, hidden + pitch, 2 * pitch, tile.rows, columns);
    }
    VisitActivation(args.activation, [&]<contract::Activation kKind>() { ActivateSums<kKind>(args, sum); });
    Write<N, 1>(
        out, [&](int j, int) { return value(j, 0); }, to, pitch, tile.rows, columns);
  } else {
    Write<N, 2>(out, value, to, pitch, tile.rows, columns);
  }
}

}  // namespace autoep::ops::cuda::hopper

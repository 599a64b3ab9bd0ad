// SPDX-License-Identifier: Apache-2.0
// What a block of the grouped product is given, and how it lays out its shared memory.
#pragma once

#include "plugin/ops/grouped/grouped_cuda.h"
#include "plugin/ops/grouped/schedule.cuh"
#include "plugin/ops/grouped/tensor_map.h"

namespace autoep::ops::cuda::hopper {

inline constexpr int kGroupThreads = 128;  // a warpgroup
inline constexpr int kBlockThreads = 3 * kGroupThreads;
inline constexpr int kConsumerWarps = 8;
inline constexpr int kGranule = 32;   // rows: tiles are cut at multiples of it
inline constexpr int kSmallBox = 32;  // rows that the copy engine reads at once
inline constexpr int kLargeBox = 128;
inline constexpr int kMostStages = 8;
inline constexpr int kRowBytes = kTileDepth * 2;
inline constexpr int kWeightBytes = kTileWeightRows * kRowBytes;
inline constexpr int kStoreRows = 64;            // rows staged at once on their way out
inline constexpr int kStorePitch = 64 * 2 + 16;  // bytes; the 16 spread the banks
inline constexpr int kLoaderRegisters = 56;
inline constexpr int kConsumerRegisters = 224;

// How a launch cuts its rows: tiles of few rows leave room for more stages, which memory-bound products need.
struct Cut {
  int tile_rows, stages;
};

__host__ __device__ constexpr int StageBytes(Cut cut) { return kWeightBytes + cut.tile_rows * kRowBytes; }

inline constexpr Cut kSmallCut = {128, 6};
inline constexpr Cut kLargeCut = {256, 4};

// The stages follow it.
struct Shared {
  uint8_t out[2][kStoreRows * kStorePitch];
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  Groups groups;
};

// A thread's way to it.
struct Memory {
  Shared& shared;
  uint8_t* stages;
  int stage_bytes;

  __device__ __forceinline__ uint8_t* Stage(int stage) const { return stages + stage * stage_bytes; }
  __device__ __forceinline__ uint64_t* Full(int stage) const { return &shared.full[stage]; }
  __device__ __forceinline__ uint64_t* Empty(int stage) const { return &shared.empty[stage]; }
};

inline constexpr int kAlignment = 1024;  // of stages, for the swizzle
inline constexpr int SharedBytes(Cut cut) { return sizeof(Shared) + kAlignment + cut.stages * StageBytes(cut); }

struct KernelArgs {
  const void* in;
  const int32_t* source;
  const int32_t* ends;
  const void* bias;
  void* hidden;
  void* out;
  int slots, columns, depth;
  Cut cut;
  contract::Activation activation;
  float alpha, limit, shift;  // kClampedSwiglu's; silu is alpha 1, no limit, shift 0
  bool only_in_is_fresh;
};

// Position in the ring of stages.
struct Ring {
  int stages;
  uint32_t phase = 0;
  int stage = 0;
  __device__ void Next() {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// What a kernel is made for.
enum class Form { kGated, kPlain, kAcross };

template <Form kForm>
inline constexpr int kTileColumns = kForm == Form::kGated ? kTileWeightRows / 2 : kTileWeightRows;

}  // namespace autoep::ops::cuda::hopper

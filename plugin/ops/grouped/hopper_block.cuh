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
inline constexpr int kGranule = 16;       // rows: tiles are cut at multiples of it
inline constexpr int kMostGranules = 16;  // in a tile
inline constexpr int kMostRows = kMostGranules * kGranule;
// Of a wide tile, which takes whole a group of few more than kMostRows: two tiles of half the rows would read the weights twice.
inline constexpr int kWideRows = 272;
inline constexpr int kSmallBox = 32;      // rows that the copy engine reads at once
inline constexpr int kLargeBox = 128;
inline constexpr int kWideBox = kWideRows / 2;
inline constexpr int kMostStages = 8;
inline constexpr int kQueued = 2;  // tiles
inline constexpr int kRowBytes = kTileDepth * 2;
inline constexpr int kWeightBytes = kTileWeightRows * kRowBytes;
inline constexpr int kStoreRows = 64;            // rows staged at once on their way out
inline constexpr int kStoreParts = 4;            // of the largest tile
inline constexpr int kStorePitch = 64 * 2 + 16;  // bytes; the 16 spread the banks
inline constexpr int kLoadingRegisters = 40;     // of a thread
inline constexpr int kGatheringRegisters = 56;
// Of what a block has, the rest.
constexpr int ConsumerRegisters(int loader) { return (504 - loader) / 2; }

// How a launch cuts its rows: tiles of few rows leave room for more stages, which memory-bound products need.
struct Cut {
  int tile_rows, stages;
};

__host__ __device__ constexpr int StageBytes(Cut cut) { return kWeightBytes + cut.tile_rows * kRowBytes; }

inline constexpr Cut kSmallCut = {128, 6};
inline constexpr Cut kLargeCut = {kMostRows, 4};
inline constexpr Cut kWideCut = {kWideRows, 4};

// Rows of a tile that are to be written, from a column on.
struct Box {
  int begin, first, rows;
};

// It follows the stages.
struct Shared {
  uint8_t out[2][kStoreRows * kStorePitch];
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  Tile tiles[kMostStages];  // of the first step of a tile; without rows: there is no more
  Tile queue[kQueued];      // tiles to be loaded, from the cluster's first block; at its end one without rows
  uint64_t queued[kQueued], taken[kQueued];
  Box pending[kConsumerWarps];
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
inline constexpr int SharedBytes(Cut cut) { return sizeof(Shared) + cut.stages * StageBytes(cut); }

struct KernelArgs {
  const void* in;
  const int32_t* source;
  const int32_t* ends;
  const void* bias;
  void* hidden;
  void* out;
  int32_t* next_tile;
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
enum class Way { kInOrder, kWide, kGathered };  // of rows to their tiles; kWide: in order, some tiles wide

template <Form kForm>
inline constexpr int kTileColumns = kForm == Form::kGated ? kTileWeightRows / 2 : kTileWeightRows;

}  // namespace autoep::ops::cuda::hopper

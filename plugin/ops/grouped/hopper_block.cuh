// SPDX-License-Identifier: Apache-2.0
// What a block of the grouped product is given, and how it lays out its shared memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "plugin/ops/grouped/grouped_cuda.h"
#include "plugin/ops/grouped/schedule.cuh"
#include "plugin/ops/grouped/tensor_map.h"

namespace autoep::ops::cuda::hopper {

inline constexpr int kGroupThreads = 128;  // a warpgroup
inline constexpr int kMultipliers = 2;     // warpgroups; before them comes one that loads, and stores
inline constexpr int kBlockThreads = (1 + kMultipliers) * kGroupThreads;
inline constexpr int kFirstStorer = kGroupThreads / 32 - kMultipliers;  // warp: one for each that multiplies
inline constexpr int kSmallBox = 32;  // rows that the copy engine reads at once
inline constexpr int kLargeBox = 128;
inline constexpr int kWideBox = kWideRows / 2;
inline constexpr int kMostStages = 10;
inline constexpr int kQueued = 2;  // tiles
inline constexpr int kRowBytes = kTileDepth * 2;
inline constexpr int kWeightBytes = kTileWeightRows * kRowBytes;
inline constexpr int kChunkBytes = kTileDepth * kRowBytes;  // 64 columns of an operand that lies across
inline constexpr int kOutPitch = 64 * 2;         // bytes of a tile's row on its way out, of one multiplying warpgroup
inline constexpr int kStoreBox = 32;             // rows that the copy engine writes at once
inline constexpr int kLoadingRegisters = 40;     // of a thread
inline constexpr int kGatheringRegisters = 56;
// Of what a block has, the rest.
constexpr int MultiplyingRegisters(int loader) { return (504 - loader) / kMultipliers; }

// How a launch cuts its rows: tiles of few rows leave room for more stages, but a group that is two tiles reads its weights twice.
// tile_rows is a multiple of kSmallBox, or kWideRows. Of a multiplying warpgroup's rows, out_rows can be on their way out: all of a
// tile's, or parts of it. For groups of up to group_rows on average; measured on an H100 and an H200.
struct Cut {
  int tile_rows, stages, out_rows;
  int group_rows = 0;
};

// Each way's, from the smallest tiles on. The last takes any number of slots, and groups of any size.
inline constexpr Cut kFewCuts[] = {{32, 10, 32, 20}, {128, 5, 128}};
inline constexpr Cut kGatheredCuts[] = {{32, 10, 32, 10}, {128, 5, 128, 96}, {160, 5, 160, 131}, {192, 4, 192}};
inline constexpr Cut kInOrderCuts[] = {{160, 5, 96, 131}, {192, 5, 96, 155}, {kMostRows, 4, 96}};
inline constexpr Cut kLargeCut = *std::rbegin(kInOrderCuts);
inline constexpr Cut kWideCut = {kWideRows, 4, 64};

__host__ __device__ constexpr int StageBytes(Cut cut) { return kWeightBytes + cut.tile_rows * kRowBytes; }
// Of one multiplying warpgroup.
__host__ __device__ constexpr int OutBytes(Cut cut) { return cut.out_rows * kOutPitch; }

// Rows of a tile that are to be written from a column on; without rows: there is no more.
struct OutPart {
  int begin, rows, column;
};

// A lane's tile or part, for its whole warp.
__device__ __forceinline__ Tile OfLane(const Tile& tile, int lane) {
  return {__shfl_sync(~0u, tile.slot, lane), __shfl_sync(~0u, tile.weight_tile, lane), __shfl_sync(~0u, tile.begin, lane),
          __shfl_sync(~0u, tile.rows, lane)};
}
__device__ __forceinline__ OutPart OfLane(const OutPart& part, int lane) {
  return {__shfl_sync(~0u, part.begin, lane), __shfl_sync(~0u, part.rows, lane), __shfl_sync(~0u, part.column, lane)};
}

// It follows the stages and what is on its way out. The groups follow it.
struct Shared {
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  Tile tiles[kMostStages];  // of the first step of a tile; without rows: there is no more
  Tile queue[kQueued];      // tiles to be loaded, from the cluster's first block; at its end one without rows
  uint64_t queued[kQueued], asked[kQueued];
  Tile out_tiles[kMultipliers];  // whose parts are on their way
  OutPart out_parts[kMultipliers];
  uint64_t out_full[kMultipliers], out_empty[kMultipliers];
};

inline constexpr int kAlignment = 1024;  // of stages, for the swizzle
inline constexpr int kMostShared = 227 * 1024;
inline constexpr int kSlotBytes = 2 * sizeof(int);
inline constexpr int SharedBytes(Cut cut, int slots) {
  return cut.stages * StageBytes(cut) + kMultipliers * OutBytes(cut) + static_cast<int>(sizeof(Shared) + sizeof(int)) +
         slots * kSlotBytes;
}
inline constexpr int MostSlots(Cut cut) { return std::min((kMostShared - SharedBytes(cut, 0)) / kSlotBytes, kMostSlots); }
static_assert(std::min({MostSlots(*std::rbegin(kFewCuts)), MostSlots(*std::rbegin(kGatheredCuts)), MostSlots(kLargeCut)}) ==
              kMostSlots);
static_assert(MostSlots(kWideCut) >= 256);

// A thread's way to it.
struct Memory {
  uint8_t* stages;
  uint8_t* out;
  Shared& shared;
  Groups groups;
  int stage_bytes, out_bytes;

  __device__ __forceinline__ Memory(uint8_t* raw, Cut cut, int slots)
      : stages(raw),
        out(stages + cut.stages * StageBytes(cut)),
        shared(*reinterpret_cast<Shared*>(out + kMultipliers * OutBytes(cut))),
        groups{reinterpret_cast<int*>(&shared + 1), reinterpret_cast<int*>(&shared + 1) + slots},
        stage_bytes(StageBytes(cut)),
        out_bytes(OutBytes(cut)) {}

  __device__ __forceinline__ uint8_t* Stage(int stage) const { return stages + stage * stage_bytes; }
  __device__ __forceinline__ uint64_t* Full(int stage) const { return &shared.full[stage]; }
  __device__ __forceinline__ uint64_t* Empty(int stage) const { return &shared.empty[stage]; }
  __device__ __forceinline__ uint8_t* Out(int group) const { return out + group * out_bytes; }
};

struct KernelArgs {
  const void* in;
  const int32_t* source;
  const int32_t* ends;
  const void* bias;
  int32_t* next_tile;
  bool keeps_hidden;  // there are maps for the values before the activation
  int slots, columns;
  int depth;  // kGradient: rows of out for a slot
  Cut cut;
  contract::Activation activation;
  float alpha, limit, shift;  // kClampedSwiglu only
  bool only_in_is_fresh;
};

// Of a tile. A slot without rows has one, of zeros.
__device__ __forceinline__ int Steps(int depth) { return depth > kTileDepth ? (depth + kTileDepth - 1) / kTileDepth : 1; }

// Whether weights are asked for of two steps at once, which are neighbours in memory: where there are stages enough.
__host__ __device__ constexpr bool ByTwo(Cut cut) { return cut.stages >= 8; }

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
enum class Form { kGated, kPlain, kAcross, kGradient };  // of the weights
// Of rows to their tiles: in order, some tiles of kWideRows, some smaller only; or small ones gathered from anywhere.
enum class Way { kInOrder, kWide, kFew, kGathered };

// Tiles go out in parts, beside the next one's products.
template <Way kWay>
inline constexpr bool kInParts = kWay == Way::kInOrder || kWay == Way::kWide;
// Blocks that share their rows.
template <Way kWay>
inline constexpr int kClusterOf = kInParts<kWay> ? 2 : 1;
// Rows of a part.
template <Way kWay>
inline constexpr int kPartRows = kWay == Way::kWide ? kWideCut.out_rows : kLargeCut.out_rows;
// Of a tile.
template <Way kWay>
inline constexpr int kGranules = (kInParts<kWay>           ? kLargeCut
                                  : kWay == Way::kGathered ? *std::rbegin(kGatheredCuts)
                                                           : *std::rbegin(kFewCuts))
                                     .tile_rows /
                                 kGranule;

// Of a thread, for the largest tile.
template <Way kWay>
inline constexpr int kSums = (kWay == Way::kWide ? kWideRows : kGranules<kWay> * kGranule) / 2;

template <Form kForm>
inline constexpr int kTileColumns = kForm == Form::kGated ? kTileWeightRows / 2 : kTileWeightRows;

// Of the columns that a multiplying warpgroup computes of a tile.
template <Form kForm>
__device__ __forceinline__ int FirstColumn(const Tile& tile, int group) {
  return tile.weight_tile * kTileColumns<kForm> + group * (kTileColumns<kForm> / kMultipliers);
}

}  // namespace autoep::ops::cuda::hopper

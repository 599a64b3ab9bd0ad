// SPDX-License-Identifier: Apache-2.0
// The loading warpgroup of the grouped product: weights and rows into the stages.
#pragma once

#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/grouped/hopper.cuh"
#include "plugin/ops/grouped/hopper_block.cuh"

namespace autoep::ops::cuda::hopper {

__device__ __forceinline__ Cluster ThisCluster() {
  const int size = ClusterSize();
  return {size, ClusterRank(), static_cast<int>(blockIdx.x) / size, static_cast<int>(gridDim.x) / size};
}

// By one thread of a block. loaders: threads that fill a stage.
__device__ __forceinline__ void InitBarriers(Shared& shared, int stages, Cluster cluster, int loaders) {
  for (int stage = 0; stage < stages; ++stage) {
    InitBarrier(&shared.full[stage], loaders);
    InitBarrier(&shared.empty[stage], kMultipliers * kGroupThreads / 32 * cluster.size);
  }
  for (int group = 0; group < kMultipliers; ++group) {
    InitBarrier(&shared.out_full[group], kGroupThreads / 32);
    InitBarrier(&shared.out_empty[group], 1);
  }
  for (int slot = 0; slot < kQueued; ++slot) {
    InitBarrier(&shared.queued[slot], 1);
    InitBarrier(&shared.asked[slot], cluster.size);
  }
  FenceBarrierInit();
}

// Tiles for a loading thread. With each it asks for another: at once where a cluster has its own in turn; where tiles go to who
// comes first, in its last steps, for who asks early takes tiles from those that begin late.
class TileQueue {
 public:
  __device__ __forceinline__ TileQueue(const KernelArgs& args, Shared& shared)
      : in_turn_(args.next_tile == nullptr), shared_(shared) {}

  __device__ __forceinline__ Tile Take() {
    WaitForPeer(&shared_.queued[ring_.stage], ring_.phase);
    return shared_.queue[ring_.stage];
  }

  // At each step of the tile that was taken last.
  __device__ __forceinline__ void AskAt(int step, int steps) {
    constexpr int kAhead = 12;  // steps, longer than an answer takes
    if (step != (in_turn_ ? 0 : max(0, steps - kAhead))) return;
    TellPeer(&shared_.asked[ring_.stage], 0);
    ring_.Next();
  }

 private:
  const bool in_turn_;
  Shared& shared_;
  Ring ring_{kQueued};
};

template <Form kForm>
__device__ __forceinline__ void LoadWeights(const CUtensorMap& map, const Tile& tile, int step, const Memory& memory, int stage) {
  uint8_t* to = memory.Stage(stage);
  const int column = tile.weight_tile * kTileColumns<kForm>;
  if constexpr (kForm == Form::kAcross) {
    Copy3(to, &map, memory.Full(stage), column, step * kTileDepth, tile.slot);
    Copy3(to + kChunkBytes, &map, memory.Full(stage), column + kTileDepth, step * kTileDepth, tile.slot);
  } else {
    Copy5(to, &map, memory.Full(stage), step * kTileDepth, 0, 0, column / 8, tile.slot);
  }
}

struct RowMaps {
  const CUtensorMap& wide;
  const CUtensorMap& large;
  const CUtensorMap& small;
};

// Of a tile's rows, those that one block of a cluster loads for all: the blocks take turns at large boxes, then at small ones for
// what is left; of a wide tile there are two boxes. Worked out once a tile, for the loading thread has little time for a step.
template <int kCluster>
struct Boxes {
  bool wide;
  int begin;                   // row of the tensor
  int large_begin, large_end;  // rows of the tile
  int small_begin, small_end;
  uint32_t bytes;  // of all blocks

  Boxes() = default;
  __device__ __forceinline__ Boxes(const Tile& tile, int rank) : wide(tile.rows > kMostRows), begin(tile.begin) {
    const int large_rows = wide ? kWideBox : kLargeBox;
    const int large = wide ? kWideRows / kWideBox : tile.rows / kLargeBox;
    large_begin = rank * large_rows;
    large_end = large * large_rows;
    small_begin = large_end + (rank + large) % kCluster * kSmallBox;
    small_end = wide ? large_end : (tile.rows + kSmallBox - 1) / kSmallBox * kSmallBox;
    bytes = small_end * kRowBytes;
  }
};

template <int kCluster>
__device__ __forceinline__ void LoadBox(const CUtensorMap& map, uint8_t* to, uint64_t* full, int column, int row) {
  constexpr uint16_t kEveryone = (1 << kCluster) - 1;
  if constexpr (kCluster > 1) {
    Copy2(to, &map, full, column, row, kEveryone);
  } else {
    Copy2(to, &map, full, column, row);
  }
}

template <Way kWay>
__device__ __forceinline__ void LoadRows(const RowMaps& maps, const Boxes<kClusterOf<kWay>>& boxes, int step, uint8_t* to,
                                         uint64_t* full) {
  constexpr int kCluster = kClusterOf<kWay>;
  const int column = step * kTileDepth;
  if (kWay == Way::kWide && boxes.wide) {
    LoadBox<kCluster>(maps.wide, to + boxes.large_begin * kRowBytes, full, column, boxes.begin + boxes.large_begin);
    return;
  }
#pragma unroll 1
  for (int row = boxes.large_begin; row < boxes.large_end; row += kCluster * kLargeBox) {
    LoadBox<kCluster>(maps.large, to + row * kRowBytes, full, column, boxes.begin + row);
  }
#pragma unroll 1
  for (int row = boxes.small_begin; row < boxes.small_end; row += kCluster * kSmallBox) {
    LoadBox<kCluster>(maps.small, to + row * kRowBytes, full, column, boxes.begin + row);
  }
}

// One thread of a cluster's first block: tiles for the loading threads of all its blocks, each cluster its own in turn, or as they
// come where there is a counter. It has its own warp, so that its divisions and its waiting hold up no load.
__device__ __forceinline__ void QueueTiles(const KernelArgs& args, Shared& shared, Cluster cluster, const Schedule& schedule) {
  const int count = schedule.Count();
  const bool in_turn = args.next_tile == nullptr;
  int unasked = in_turn ? kQueued : 1;  // tiles
  Ring asked{kQueued};
  Ring queued{kQueued};
  for (int number = schedule.First();; queued.Next()) {
    const Tile tile = number < count ? schedule.Get(number) : Tile{};
    for (int rank = 0; rank < cluster.size; ++rank) {
      StoreAtPeer(&shared.queue[queued.stage], rank, make_int4(tile.slot, tile.weight_tile + rank, tile.begin, tile.rows));
      TellPeer(&shared.queued[queued.stage], rank);
    }
    if (tile.rows == 0) return;
    if (--unasked <= 0) {
      WaitForPeer(&shared.asked[asked.stage], asked.phase);
      asked.Next();
    }
    number = in_turn ? number + schedule.Clusters() : schedule.Clusters() + atomicAdd(args.next_tile, 1);
  }
}

// One thread: rows in order. kAtOnce: steps whose weights are asked for together.
template <Form kForm, Way kWay, int kAtOnce>
__device__ __forceinline__ void LoadInOrder(const KernelArgs& args, const CUtensorMap& weights, const RowMaps& maps,
                                            const Memory& memory, Cluster cluster) {
  const int steps = Steps(args.depth);
  TileQueue queue(args, memory.shared);
  Boxes<kClusterOf<kWay>> boxes;
  const auto load_weights = [&](const Tile& tile, int step, int stage) {
    if (step == 0) {
      memory.shared.tiles[stage] = tile;
      boxes = {tile, cluster.rank};
    }
    ArriveExpecting(memory.Full(stage), kWeightBytes + boxes.bytes);
    LoadWeights<kForm>(weights, tile, step, memory, stage);
  };
  Tile tile = queue.Take();
  // Weights of the first stages do not wait for the grid that makes the rows.
  int early = 0;
  for (; tile.rows > 0 && early < min(args.cut.stages, steps); ++early) load_weights(tile, early, early);
  WaitForEarlierGrids();
  Ring ring{args.cut.stages, 1};
  for (; tile.rows > 0; tile = queue.Take()) {
    for (int step = 0; step < steps; step += kAtOnce) {
      Ring next = ring;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, next.Next()) {
        if (i > 0 && step + i >= steps) break;
        queue.AskAt(step + i, steps);
        if (early > 0) {
          --early;
        } else {
          Wait(memory.Empty(next.stage), next.phase);
          load_weights(tile, step + i, next.stage);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, ring.Next()) {
        if (i > 0 && step + i >= steps) break;
        LoadRows<kWay>(maps, boxes, step + i, memory.Stage(ring.stage) + kWeightBytes, memory.Full(ring.stage));
      }
    }
  }
  Wait(memory.Empty(ring.stage), ring.phase);
  memory.shared.tiles[ring.stage] = tile;
  Arrive(memory.Full(ring.stage));
}

// A warpgroup: rows from anywhere. kAtOnce: steps whose weights are asked for together.
template <Form kForm, int kAtOnce>
__device__ __forceinline__ void LoadGathered(const KernelArgs& args, const CUtensorMap& weights, const Memory& memory,
                                             const Schedule& schedule) {
  constexpr int kRowsAtOnce = kGroupThreads / 8;
  constexpr int kMostTurns = kGranules<Way::kGathered> * kGranule / kRowsAtOnce;
  const int steps = Steps(args.depth);
  const int thread = threadIdx.x % kGroupThreads;
  const int chunk = thread % 8;
  const int first_row = thread / 8;
  const uint32_t place = first_row * kRowBytes + ((chunk ^ (first_row % 8)) << 4);
  const char* in = static_cast<const char*>(args.in) + chunk * 16;
  const int count = schedule.Count();
  Ring ring{args.cut.stages, 1};
  for (int number = schedule.First(); number < count; number += schedule.Clusters()) {
    const Tile tile = schedule.Get(number);
    int source[kMostTurns];
#pragma unroll
    for (int i = 0; i < kMostTurns; ++i) source[i] = args.source[tile.begin + min(first_row + i * kRowsAtOnce, tile.rows - 1)];
    const auto load_rows = [&](int step, int stage) {
      const uint32_t to = SharedAddress(memory.Stage(stage) + kWeightBytes) + place;
      const uint32_t bytes = step * kTileDepth + chunk * 8 < args.depth ? 16 : 0;
#pragma unroll
      for (int i = 0; i < kMostTurns; ++i) {
        if (i * kRowsAtOnce >= tile.rows) break;
        CopyAsync16(to + i * kRowsAtOnce * kRowBytes, in + int64_t{source[i]} * args.depth * 2 + step * kRowBytes, bytes);
      }
      ArriveAfterCopies(memory.Full(stage));
    };
    for (int step = 0; step < steps; step += kAtOnce) {
      Ring next = ring;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, next.Next()) {
        if (i > 0 && step + i >= steps) break;
        Wait(memory.Empty(next.stage), next.phase);
        if (thread != 0) continue;
        if (step + i == 0) memory.shared.tiles[next.stage] = tile;
        ArriveExpecting(memory.Full(next.stage), kWeightBytes);
        LoadWeights<kForm>(weights, tile, step + i, memory, next.stage);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, ring.Next()) {
        if (i > 0 && step + i >= steps) break;
        load_rows(step + i, ring.stage);
      }
    }
  }
  Wait(memory.Empty(ring.stage), ring.phase);
  if (thread == 0) {
    memory.shared.tiles[ring.stage] = {};
    Arrive(memory.Full(ring.stage));
  }
  Arrive(memory.Full(ring.stage));
}

}  // namespace autoep::ops::cuda::hopper

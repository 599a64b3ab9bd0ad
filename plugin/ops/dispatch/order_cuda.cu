// SPDX-License-Identifier: Apache-2.0
// The order of pairs on CUDA: a stable counting sort by slot number, one launch for a block's worth of pairs, else two. Nothing
// here waits for the host, and equal inputs give equal outputs.
//
// Each warp owns a run of pairs and counts them by slot; a slot's counts summed over the warps before it, and the slots before
// it, give where the warp's pairs of that slot go.
#include <algorithm>

#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 32;
constexpr int kBlock = kWarp * kWarps;
constexpr int64_t kPairsPerBlock = 2048;
constexpr int64_t kMostBlocks = 256;
constexpr unsigned kAll = ~0u;

struct Plan {
  int64_t blocks, pairs_per_warp;
};

Plan PlanFor(int64_t pairs) {
  const int64_t blocks = std::clamp<int64_t>((pairs + kPairsPerBlock - 1) / kPairsPerBlock, 1, kMostBlocks);
  const int64_t per_warp = (pairs + blocks * kWarps - 1) / (blocks * kWarps);
  return {blocks, (per_warp + kWarp - 1) / kWarp * kWarp};
}

__device__ int SlotOfExpert(const PairsIn& in, int64_t expert) {
  return static_cast<int>(in.placement[2 * expert] * in.slots_per_rank + in.placement[2 * expert + 1]);
}

// Into shared memory.
__device__ void ReadSlots(const PairsIn& in, int* slots) {
  for (int64_t expert = threadIdx.x; expert < in.experts; expert += kBlock) slots[expert] = SlotOfExpert(in, expert);
}

__device__ int SlotOf(const PairsIn& in, const int* slots, int64_t pair) {
  int64_t id = in.ids[pair];
  if (id < 0 || id >= in.experts) {
    in.fault->id = id;
    in.fault->layer = in.layer;
    id = 0;
  }
  return slots[id];
}

// Calls visit(pair, slot) for the warp's pairs, 32 at a time; slot is -1 past the last.
template <typename Visit>
__device__ void ForPairs(const PairsIn& in, const int* slots, int64_t pairs_per_warp, Visit visit) {
  const int64_t warp = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp;
  const int64_t begin = warp * pairs_per_warp;
  const int64_t end = min(begin + pairs_per_warp, in.pairs);
  int64_t pair = begin + threadIdx.x % kWarp;
  int slot = pair < end ? SlotOf(in, slots, pair) : -1;
  for (int64_t base = begin; base < end; base += kWarp) {
    const int64_t next = pair + kWarp;
    const int next_slot = next < end ? SlotOf(in, slots, next) : -1;
    visit(pair, slot);
    pair = next;
    slot = next_slot;
  }
}

// counts[warp][slot] of this block.
__device__ void CountByWarp(const PairsIn& in, int* slots, int64_t pairs_per_warp, int* counts) {
  ReadSlots(in, slots);
  for (int64_t i = threadIdx.x; i < kWarps * in.experts; i += kBlock) counts[i] = 0;
  __syncthreads();
  int* mine = counts + threadIdx.x / kWarp * in.experts;
  ForPairs(in, slots, pairs_per_warp, [&](int64_t, int slot) {
    const unsigned same = __match_any_sync(kAll, slot);
    if (slot >= 0 && threadIdx.x % kWarp == __ffs(same) - 1) mine[slot] += __popc(same);
    __syncwarp();
  });
  __syncthreads();
}

__global__ void CountPairs(PairsIn in, int64_t pairs_per_warp, int64_t* by_block) {
  extern __shared__ int counts[];
  __shared__ int slots[kBlock];
  CountByWarp(in, slots, pairs_per_warp, counts);
  for (int64_t slot = threadIdx.x; slot < in.experts; slot += kBlock) {
    int64_t total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += counts[warp * in.experts + slot];
    by_block[blockIdx.x * in.experts + slot] = total;
  }
}

// Sum of `value` over the threads before this one.
__device__ int64_t SumBefore(int64_t value, int64_t* warp_sums) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int64_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t lower = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += lower;
  }
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  int64_t before = 0;
  for (int i = 0; i < warp; ++i) before += warp_sums[i];
  return before + sum - value;
}

// Of thread `slot`: pairs of this slot in earlier blocks, and in all.
struct SlotSums {
  int64_t earlier, all;
};

__device__ SlotSums SumSlot(const PairsIn& in, int64_t slot, const int* counts, const int64_t* by_block) {
  SlotSums sums{0, 0};
  if (slot >= in.experts) return sums;
  if (by_block == nullptr) {
    for (int warp = 0; warp < kWarps; ++warp) sums.all += counts[warp * in.experts + slot];
    return sums;
  }
#pragma unroll 8
  for (int64_t block = 0; block < gridDim.x; ++block) {
    const int64_t count = by_block[block * in.experts + slot];
    if (block < blockIdx.x) sums.earlier += count;
    sums.all += count;
  }
  return sums;
}

// by_block is null where there is one block.
__global__ void PlacePairs(PairsIn in, int64_t pairs_per_warp, const int64_t* by_block, PairsOut out) {
  extern __shared__ int counts[];
  __shared__ int slots[kBlock];
  __shared__ int64_t warp_sums[kWarps];
  __shared__ int64_t begins[kBlock];
  __shared__ int64_t totals[kBlock];
  CountByWarp(in, slots, pairs_per_warp, counts);
  const int64_t own = threadIdx.x;
  const SlotSums sums = SumSlot(in, own, counts, by_block);
  const int64_t begin = SumBefore(sums.all, warp_sums);
  if (blockIdx.x == 0 && own < 2 && out.zeros != nullptr) out.zeros[own] = 0;
  if (own < in.experts) {
    begins[own] = begin + sums.earlier;
    totals[own] = sums.all;
    int before = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = counts[warp * in.experts + own];
      counts[warp * in.experts + own] = before;
      before += count;
    }
    if (blockIdx.x == 0) {
      if (out.by_slot != nullptr) out.by_slot[own] = sums.all;
      if (out.ends != nullptr) out.ends[own] = static_cast<int32_t>(begin + sums.all);
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && out.counts != nullptr && own < in.experts) out.counts[own] = totals[slots[own]];
  int* mine = counts + threadIdx.x / kWarp * in.experts;
  const int lane = threadIdx.x % kWarp;
  ForPairs(in, slots, pairs_per_warp, [&](int64_t pair, int slot) {
    const unsigned same = __match_any_sync(kAll, slot);
    if (slot >= 0) {
      const int64_t position = begins[slot] + mine[slot] + __popc(same & ((1u << lane) - 1));
      if (out.order != nullptr) out.order[pair] = position;
      if (out.short_order != nullptr) out.short_order[pair] = static_cast<int32_t>(position);
      if (out.tokens != nullptr) out.tokens[position] = static_cast<int32_t>(pair / in.choices);
      if (out.sorted != nullptr) out.sorted[position] = static_cast<int32_t>(pair);
    }
    __syncwarp();
    if (slot >= 0 && lane == __ffs(same) - 1) mine[slot] += __popc(same);
    __syncwarp();
  });
}

// The first slot that ends after `position`.
__device__ int64_t SlotAt(const int32_t* ends, int64_t experts, int64_t position) {
  int64_t low = 0;
  int64_t high = experts - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ends[middle] > position) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__global__ void Destination(const int64_t* order, const int32_t* ends, int64_t pairs, int64_t choices, int64_t experts,
                            int64_t ranks, int64_t* slots, int64_t* rank_of) {
  const int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  const int64_t per_rank = experts / ranks;
  const int64_t slot = SlotAt(ends, experts, order[pair]);
  int64_t rank = slot / per_rank;
  for (int64_t earlier = pair / choices * choices; earlier < pair; ++earlier) {
    if (SlotAt(ends, experts, order[earlier]) / per_rank == slot / per_rank) rank = ranks;
  }
  slots[pair] = slot;
  rank_of[pair] = rank;
}

}  // namespace

void FindDestinations(const int64_t* order, const int32_t* ends, int64_t pairs, int64_t choices, int64_t experts, int64_t ranks,
                      int64_t* slots, int64_t* rank_of, cudaStream_t stream) {
  if (pairs == 0) return;
  constexpr int kThreadsEach = 256;
  const int64_t blocks = (pairs + kThreadsEach - 1) / kThreadsEach;
  Destination<<<blocks, kThreadsEach, 0, stream>>>(order, ends, pairs, choices, experts, ranks, slots, rank_of);
}

int64_t OrderScratch(int64_t pairs, int64_t experts) {
  const int64_t blocks = PlanFor(pairs).blocks;
  return blocks == 1 ? 0 : blocks * experts;
}

cudaError_t OrderPairs(const PairsIn& in, const PairsOut& out, int64_t* scratch, cudaStream_t stream) {
  const Plan plan = PlanFor(in.pairs);
  const size_t shared = kWarps * in.experts * sizeof(int);
  constexpr size_t kAlwaysThere = 48 * 1024 - 21 * 1024;  // less the kernels' own arrays
  if (shared > kAlwaysThere) {
    for (const void* kernel : {reinterpret_cast<const void*>(&CountPairs), reinterpret_cast<const void*>(&PlacePairs)}) {
      const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      if (error != cudaSuccess) return error;
    }
  }
  int64_t* by_block = plan.blocks == 1 ? nullptr : scratch;
  if (by_block != nullptr) CountPairs<<<plan.blocks, kBlock, shared, stream>>>(in, plan.pairs_per_warp, by_block);
  PlacePairs<<<plan.blocks, kBlock, shared, stream>>>(in, plan.pairs_per_warp, by_block, out);
  return cudaGetLastError();
}

}  // namespace autoep::ops::cuda

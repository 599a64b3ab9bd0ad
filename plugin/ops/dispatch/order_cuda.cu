// SPDX-License-Identifier: Apache-2.0
// The order of pairs on CUDA: a stable counting sort by slot number, one launch for a block's worth of pairs, else two. Nothing
// here waits for the host, and equal inputs give equal outputs.
//
// Each warp owns a run of pairs and counts them by slot; a slot's counts summed over the warps before it, and the slots before
// it, give where the warp's pairs of that slot go. What a small call takes is latency, so sums go by shuffles, not by loops.
#include <algorithm>

#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMostWarps = 32;
constexpr int kMostThreads = kWarp * kMostWarps;
constexpr int64_t kPairsPerBlock = 2048;
constexpr int64_t kMostBlocks = 256;
constexpr unsigned kAll = ~0u;

struct Plan {
  int64_t blocks, pairs_per_warp;
  int warps;  // of a block: a power of two, with a thread for each expert
};

Plan PlanFor(int64_t pairs, int64_t experts) {
  const int64_t blocks = std::clamp<int64_t>((pairs + kPairsPerBlock - 1) / kPairsPerBlock, 1, kMostBlocks);
  int warps = 1;
  while (warps < kMostWarps && warps * kWarp < std::max(pairs, experts)) warps *= 2;
  const int64_t per_warp = (pairs + blocks * warps - 1) / (blocks * warps);
  return {blocks, (per_warp + kWarp - 1) / kWarp * kWarp, warps};
}

// Of a warp's counts in shared memory: odd, so that one slot's counts of all warps lie in different banks.
__host__ __device__ constexpr int Pitch(int64_t experts) { return static_cast<int>(experts) | 1; }

__device__ int SlotOfExpert(const PairsIn& in, int64_t expert) {
  return static_cast<int>(in.placement[2 * expert] * in.slots_per_rank + in.placement[2 * expert + 1]);
}

__device__ int64_t ExpertOf(const PairsIn& in, int64_t id) {
  if (id >= 0 && id < in.experts) return id;
  in.fault->id = id;
  in.fault->layer = in.layer;
  return 0;
}

// The pairs of this warp.
struct Run {
  int64_t begin, end;

  __device__ explicit Run(const PairsIn& in, int64_t pairs_per_warp) {
    begin = (int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp) * pairs_per_warp;
    end = min(begin + pairs_per_warp, in.pairs);
  }
  __device__ int64_t First() const { return begin + threadIdx.x % kWarp; }
};

// The table of slots into shared memory, and the slot of this thread's first pair, -1 if there is none. Neither read waits
// for the other.
__device__ int ReadSlots(const PairsIn& in, const Run& run, int* slots) {
  const bool any = run.First() < run.end;
  const int64_t id = any ? in.ids[run.First()] : 0;
  if (threadIdx.x < in.experts) slots[threadIdx.x] = SlotOfExpert(in, threadIdx.x);
  __syncthreads();
  return any ? slots[ExpertOf(in, id)] : -1;
}

// Calls visit(pair, slot) for the warp's pairs, 32 at a time; slot is -1 past the last.
template <typename Visit>
__device__ void ForPairs(const PairsIn& in, const Run& run, const int* slots, int slot, Visit visit) {
  int64_t pair = run.First();
#pragma unroll 1
  for (int64_t base = run.begin; base < run.end; base += kWarp) {
    const int64_t next = pair + kWarp;
    const int next_slot = next < run.end ? slots[ExpertOf(in, in.ids[next])] : -1;
    visit(pair, slot);
    pair = next;
    slot = next_slot;
  }
}

__global__ void __launch_bounds__(kMostThreads) CountPairs(PairsIn in, int64_t pairs_per_warp, int64_t* by_block) {
  __shared__ int slots[kMostThreads];
  __shared__ int totals[kMostThreads];
  LetNextGridStart();
  totals[threadIdx.x] = 0;
  const Run run(in, pairs_per_warp);
  WaitForEarlierGrids();
  const int first = ReadSlots(in, run, slots);
  ForPairs(in, run, slots, first, [&](int64_t, int slot) {
    const unsigned same = __match_any_sync(kAll, slot);
    if (slot >= 0 && threadIdx.x % kWarp == __ffs(same) - 1) atomicAdd(&totals[slot], __popc(same));
  });
  __syncthreads();
  if (threadIdx.x < in.experts) by_block[blockIdx.x * in.experts + threadIdx.x] = totals[threadIdx.x];
}

// counts[warp][slot] of this block's warps becomes the sum of the warps before, and totals[slot] of all.
__device__ void SumOverWarps(int experts, int* counts, int* totals) {
  constexpr int kAtOnce = 4;
  const int warps = blockDim.x / kWarp;
  const int warp = threadIdx.x & (warps - 1);
  int* mine = counts + warp * Pitch(experts);
#pragma unroll 1
  for (int base = 0; base < experts; base += kWarp * kAtOnce) {
    const int first = base + (threadIdx.x >> (__ffs(warps) - 1));
    int own[kAtOnce], sum[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int slot = first + i * kWarp;
      sum[i] = own[i] = slot < experts ? mine[slot] : 0;
    }
#pragma unroll 1
    for (int step = 1; step < warps; step *= 2) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int lower = __shfl_up_sync(kAll, sum[i], step, warps);
        if (warp >= step) sum[i] += lower;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int slot = first + i * kWarp;
      if (slot >= experts) continue;
      mine[slot] = sum[i] - own[i];
      if (warp == warps - 1) totals[slot] = sum[i];
    }
  }
}

// Sum of `value` over the threads before this one.
__device__ int SumBefore(int value, int* warp_sums) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int lower = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += lower;
  }
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  return __reduce_add_sync(kAll, lane < warp ? warp_sums[lane] : 0) + sum - value;
}

// Of a slot: pairs in earlier blocks, and in all.
struct SlotSums {
  int earlier, all;
};

__device__ SlotSums SumSlot(const PairsIn& in, int slot, int here, const int64_t* by_block) {
  SlotSums sums{0, here};
  if (by_block == nullptr || slot >= in.experts) return sums;
  sums.all = 0;
#pragma unroll 8
  for (int64_t block = 0; block < gridDim.x; ++block) {
    const int count = static_cast<int>(by_block[block * in.experts + slot]);
    if (block < blockIdx.x) sums.earlier += count;
    sums.all += count;
  }
  return sums;
}

// by_block is null where there is one block.
__global__ void __launch_bounds__(kMostThreads)
    PlacePairs(PairsIn in, int64_t pairs_per_warp, const int64_t* by_block, PairsOut out) {
  extern __shared__ int counts[];
  __shared__ int slots[kMostThreads];
  __shared__ int totals[kMostThreads];
  __shared__ int begins[kMostThreads];
  __shared__ int warp_sums[kMostWarps];
  LetNextGridStart();
  const int own = threadIdx.x;
  const int experts = static_cast<int>(in.experts);
  if (own < experts) PrefetchToL2(in.placement + 2 * own);
#pragma unroll 1
  for (int i = own; i < static_cast<int>(blockDim.x) / kWarp * Pitch(experts); i += blockDim.x) counts[i] = 0;
  totals[own] = 0;
  const Run run(in, pairs_per_warp);
  int* mine = counts + own / kWarp * Pitch(experts);
  const int lane = own % kWarp;
  WaitForEarlierGrids();
  const int first = ReadSlots(in, run, slots);
  ForPairs(in, run, slots, first, [&](int64_t, int slot) {
    const unsigned same = __match_any_sync(kAll, slot);
    if (slot >= 0 && lane == __ffs(same) - 1) mine[slot] += __popc(same);
    __syncwarp();
  });
  __syncthreads();
  SumOverWarps(experts, counts, totals);
  __syncthreads();
  const SlotSums sums = SumSlot(in, own, totals[own], by_block);
  const int begin = SumBefore(sums.all, warp_sums);
  if (blockIdx.x == 0 && own < 2 && out.zeros != nullptr) out.zeros[own] = 0;
  if (own < experts) {
    begins[own] = begin + sums.earlier;
    totals[own] = sums.all;
    if (blockIdx.x == 0) {
      if (out.by_slot != nullptr) out.by_slot[own] = sums.all;
      if (out.ends != nullptr) out.ends[own] = begin + sums.all;
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && out.counts != nullptr && own < experts) out.counts[own] = totals[slots[own]];
  const uint32_t choices = static_cast<uint32_t>(in.choices);
  ForPairs(in, run, slots, first, [&](int64_t pair, int slot) {
    const unsigned same = __match_any_sync(kAll, slot);
    if (slot >= 0) {
      const int position = begins[slot] + mine[slot] + __popc(same & ((1u << lane) - 1));
      if (out.order != nullptr) out.order[pair] = position;
      if (out.short_order != nullptr) out.short_order[pair] = position;
      if (out.tokens != nullptr) out.tokens[position] = static_cast<int32_t>(static_cast<uint32_t>(pair) / choices);
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
  const int64_t blocks = PlanFor(pairs, experts).blocks;
  return blocks == 1 ? 0 : blocks * experts;
}

cudaError_t OrderPairs(const PairsIn& in, const PairsOut& out, int64_t* scratch, cudaStream_t stream) {
  const Plan plan = PlanFor(in.pairs, in.experts);
  const unsigned threads = plan.warps * kWarp;
  const size_t shared = plan.warps * Pitch(in.experts) * sizeof(int);
  constexpr size_t kAlwaysThere = 48 * 1024 - 13 * 1024;  // less the kernel's own arrays
  if (shared > kAlwaysThere) {
    const cudaError_t error =
        cudaFuncSetAttribute(&PlacePairs, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  int64_t* by_block = plan.blocks == 1 ? nullptr : scratch;
  const unsigned blocks = static_cast<unsigned>(plan.blocks);
  if (by_block != nullptr) {
    const cudaError_t error = LaunchDependent(&CountPairs, blocks, threads, 0, stream, in, plan.pairs_per_warp, by_block);
    if (error != cudaSuccess) return error;
  }
  return LaunchDependent(&PlacePairs, blocks, threads, shared, stream, in, plan.pairs_per_warp, by_block, out);
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// dispatch on CUDA: a stable counting sort in three kernels (count a block's pairs, add up, place), and the spread of rows.
// Nothing here waits for the host.
#include <cstdio>

#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

__host__ __device__ int64_t Blocks(int64_t pairs) { return (pairs + kThreads - 1) / kThreads; }

__device__ int64_t SlotOf(const int64_t* ids, const int64_t* slots, int64_t pair, int64_t experts) {
  const int64_t id = ids[pair];
  if (id < 0 || id >= experts) {
    printf("autoep: dispatch: ids holds %lld, and there are %lld experts\n", static_cast<long long>(id),
           static_cast<long long>(experts));
    __trap();
  }
  return slots[id];
}

// counts[block, slot], zeroed before.
__global__ void CountPairs(const int64_t* ids, const int64_t* slots, int64_t pairs, int64_t experts, unsigned long long* counts) {
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pair < pairs) atomicAdd(&counts[blockIdx.x * experts + SlotOf(ids, slots, pair, experts)], 1ULL);
}

// Turns counts into each block's first position of each slot, and gives the total of each slot. One block.
__global__ void AccumulateCounts(int64_t blocks, int64_t experts, int64_t* counts, int64_t* by_slot) {
  for (int64_t slot = threadIdx.x; slot < experts; slot += blockDim.x) {
    int64_t total = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = counts[block * experts + slot];
      counts[block * experts + slot] = total;
      total += count;
    }
    by_slot[slot] = total;
  }
}

// order[pair] = pairs of lower slots + earlier blocks' pairs of this slot + this block's earlier pairs of this slot.
__global__ void PlacePairs(const int64_t* ids, const int64_t* slots, int64_t pairs, int64_t experts, const int64_t* counts,
                           const int64_t* by_slot, int64_t* order) {
  __shared__ int64_t block_slots[kThreads];
  const int64_t pair = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t slot = pair < pairs ? SlotOf(ids, slots, pair, experts) : -1;
  block_slots[threadIdx.x] = slot;
  __syncthreads();
  if (pair >= pairs) return;
  int64_t position = counts[blockIdx.x * experts + slot];
  for (int64_t lower = 0; lower < slot; ++lower) position += by_slot[lower];
  for (int i = 0; i < threadIdx.x; ++i) position += block_slots[i] == slot;
  order[pair] = position;
}

template <typename To, typename From>
__global__ void Spread(const From* from, const Sum<From>* factors, const int64_t* order, int64_t choices, int64_t hidden, To* to) {
  const int64_t pair = blockIdx.x;
  const From* row = from + pair / choices * hidden;
  To* target = to + order[pair] * hidden;
  const Sum<From> factor = factors == nullptr ? Sum<From>{1} : factors[pair];
  for (int64_t i = threadIdx.x; i < hidden; i += kThreads) target[i] = Narrow<To>(Widen<Sum<From>>(row[i]) * factor);
}

}  // namespace

int64_t OrderScratch(int64_t pairs, int64_t experts) { return Blocks(pairs) * experts; }

void OrderPairs(const int64_t* ids, const int64_t* slots, int64_t pairs, int64_t experts, int64_t* scratch, int64_t* order,
                int64_t* by_slot, cudaStream_t stream) {
  const int64_t blocks = Blocks(pairs);
  cudaMemsetAsync(scratch, 0, OrderScratch(pairs, experts) * sizeof(int64_t), stream);
  if (blocks > 0)
    CountPairs<<<blocks, kThreads, 0, stream>>>(ids, slots, pairs, experts, reinterpret_cast<unsigned long long*>(scratch));
  AccumulateCounts<<<1, kThreads, 0, stream>>>(blocks, experts, scratch, by_slot);
  if (blocks > 0) PlacePairs<<<blocks, kThreads, 0, stream>>>(ids, slots, pairs, experts, scratch, by_slot, order);
}

void SpreadRows(Rows from, const void* factors, const int64_t* order, int64_t pairs, int64_t choices, int64_t hidden, Rows to,
                cudaStream_t stream) {
  if (pairs == 0) return;
  VisitPair(to.type, from.type, [&]<typename To, typename From>() {
    Spread<<<pairs, kThreads, 0, stream>>>(static_cast<const From*>(from.data), static_cast<const Sum<From>*>(factors), order,
                                           choices, hidden, static_cast<To*>(to.data));
  });
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// Launchers of the row kernels: raw device pointers and a stream, no LibTorch, which would cost nvcc minutes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace autoep::ops::cuda {

enum class RowType { kDouble, kFloat, kHalf, kBFloat16 };

// A matrix of rows. Factors are double where any matrix is double, else float.
struct Rows {
  void* data;
  RowType type;
};

// Where a kernel says that an id was out of range. The host reads it, so it lies in host memory that the device can write.
struct Fault {
  int64_t id;
  int64_t layer;  // the number that the launch gave, above 0; 0: no fault
};

struct PairsIn {
  const int64_t* ids;        // [pairs]
  const int64_t* placement;  // [experts, 2]: rank, slot on the rank
  int64_t pairs, experts, choices, slots_per_rank;
  volatile Fault* fault;
  int64_t layer;
};

// Any may be null. See dispatch.h.
struct PairsOut {
  int64_t* order;        // [pairs]
  int32_t* short_order;  // [pairs], the same
  int32_t* sorted;       // [pairs]: the pair at each position
  int32_t* tokens;       // [pairs]: its token
  int64_t* by_slot;      // [experts]
  int64_t* counts;       // [experts]
  int32_t* ends;         // [experts]: sums of by_slot up to each slot
  int32_t* zeros;        // [2]: gets zeros
};

inline constexpr int64_t kMostExperts = 1024;

// Elements of scratch that OrderPairs needs.
int64_t OrderScratch(int64_t pairs, int64_t experts);

// An id out of range counts as expert 0 and is reported in fault.
cudaError_t OrderPairs(const PairsIn& in, const PairsOut& out, int64_t* scratch, cudaStream_t stream);

// See dispatch.h. order [pairs], ends [experts]: as OrderPairs writes them; ranks must divide experts.
void FindDestinations(const int64_t* order, const int32_t* ends, int64_t pairs, int64_t choices, int64_t experts, int64_t ranks,
                      int64_t* slots, int64_t* rank_of, cudaStream_t stream);

// The kernels below take order as int64 or int32, and factors [tokens, choices] of any type, or null.

struct Order {
  const void* data;
  bool is_short;  // int32
  int64_t rows;   // a position from here on is none: the choice has no row
};

// to[order[t, j]] = from[t] * factors[t, j]. from's rows lie `pitch` values apart; its type is to's or wider.
void SpreadRows(Rows from, int64_t pitch, Rows factors, Order order, int64_t tokens, int64_t choices, int64_t hidden, Rows to,
                cudaStream_t stream);

// to[t] = sum over j of factors[t, j] * from[order[t, j]], in the order of j. to's type is from's or wider.
void SumRows(Rows from, Rows factors, Order order, int64_t tokens, int64_t choices, int64_t hidden, Rows to, cudaStream_t stream);

// to[t, j] = dot(tokens[t], rows[order[t, j]]), 0 where there is no row; fp32 or fp64. tokens' type is rows' or wider.
void DotRows(Rows tokens, Rows rows, Order order, int64_t pairs, int64_t choices, int64_t hidden, void* to, cudaStream_t stream);

}  // namespace autoep::ops::cuda

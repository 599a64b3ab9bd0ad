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

// Scratch ints that OrderPairs needs for `pairs` pairs and `experts` experts.
int64_t OrderScratch(int64_t pairs, int64_t experts);

// See dispatch.h. An id outside [0, experts) prints a line and stops the kernel.
void OrderPairs(const int64_t* ids, const int64_t* slots, int64_t pairs, int64_t experts, int64_t* scratch, int64_t* order,
                int64_t* by_slot, cudaStream_t stream);

// to[order[p]] = from[p / choices] * factors[p]; factors may be null. from's type is to's or wider.
void SpreadRows(Rows from, const void* factors, const int64_t* order, int64_t pairs, int64_t choices, int64_t hidden, Rows to,
                cudaStream_t stream);

// to[t] = sum over j of factors[t, j] * from[order[t, j]]; factors may be null. to's type is from's or wider.
void SumRows(Rows from, const void* factors, const int64_t* order, int64_t tokens, int64_t choices, int64_t hidden, Rows to,
             cudaStream_t stream);

// to[t, j] = dot(tokens[t], rows[order[t, j]]), fp32 or fp64. tokens' type is rows' or wider.
void DotRows(Rows tokens, Rows rows, const int64_t* order, int64_t pairs, int64_t choices, int64_t hidden, void* to,
             cudaStream_t stream);

}  // namespace autoep::ops::cuda

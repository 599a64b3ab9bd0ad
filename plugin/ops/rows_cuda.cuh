// SPDX-License-Identifier: Apache-2.0
// Element types of the row kernels, and how they accumulate.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {

inline constexpr int kThreads = 256;

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename S, typename T>
__device__ S Widen(T value) {
  if constexpr (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) {
    return static_cast<S>(static_cast<float>(value));
  } else {
    return static_cast<S>(value);
  }
}

template <typename T, typename S>
__device__ T Narrow(S value) {
  if constexpr (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) {
    return T(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

// W values that are read or written at once.
template <typename T, int W>
struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Vector {
  T at[W];
};

// Calls visit(values) with a pointer of the matrix's type.
template <typename Visit>
__device__ __forceinline__ auto VisitValues(const Rows& matrix, Visit visit) {
  switch (matrix.type) {
    case RowType::kDouble:
      return visit(static_cast<const double*>(matrix.data));
    case RowType::kFloat:
      return visit(static_cast<const float*>(matrix.data));
    case RowType::kHalf:
      return visit(static_cast<const __half*>(matrix.data));
    default:
      return visit(static_cast<const __nv_bfloat16*>(matrix.data));
  }
}

// Reads one of a matrix of any type.
template <typename S>
__device__ S ReadAny(const Rows& matrix, int64_t i) {
  return VisitValues(matrix, [&](const auto* values) { return Widen<S>(values[i]); });
}

// Calls visit(positions) with a pointer of their type.
template <typename Visit>
__device__ __forceinline__ auto VisitPositions(const Order& order, Visit visit) {
  return order.is_short ? visit(static_cast<const int32_t*>(order.data)) : visit(static_cast<const int64_t*>(order.data));
}

__device__ inline int64_t PositionAt(const Order& order, int64_t pair) {
  return VisitPositions(order, [&](const auto* positions) { return int64_t{positions[pair]}; });
}

// How many of Row fill 16 bytes.
template <typename Row>
inline constexpr int kVector = 16 / sizeof(Row);

// Rows may be read kVector at a time.
template <typename Row>
bool Vectors(int64_t hidden, const void* a, const void* b) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return hidden % kVector<Row> == 0 && aligned(a) && aligned(b);
}

// One block, or several, a row of `pieces`.
struct RowGrid {
  dim3 blocks;
  unsigned threads;
};

inline RowGrid GridFor(int64_t rows, int64_t pieces) {
  const unsigned threads = pieces >= kThreads ? kThreads : static_cast<unsigned>((pieces + 31) / 32 * 32);
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>((pieces + threads - 1) / threads)), threads};
}

// Calls visit.operator()<Row, Other>(); other is row, float or double.
template <typename Visit>
void VisitPair(RowType row, RowType other, Visit visit) {
  const auto with = [&]<typename Row>() {
    if (other == RowType::kDouble) return visit.template operator()<Row, double>();
    if (other == RowType::kFloat) return visit.template operator()<Row, float>();
    return visit.template operator()<Row, Row>();
  };
  switch (row) {
    case RowType::kDouble:
      return with.template operator()<double>();
    case RowType::kFloat:
      return with.template operator()<float>();
    case RowType::kHalf:
      return with.template operator()<__half>();
    case RowType::kBFloat16:
      return with.template operator()<__nv_bfloat16>();
  }
}

}  // namespace autoep::ops::cuda

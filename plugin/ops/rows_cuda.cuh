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

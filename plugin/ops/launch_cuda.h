// SPDX-License-Identifier: Apache-2.0
// From tensors to the arguments of the CUDA row kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "plugin/ops/checks.h"
#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {

inline RowType RowTypeOf(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return RowType::kDouble;
    case at::kFloat:
      return RowType::kFloat;
    case at::kHalf:
      return RowType::kHalf;
    case at::kBFloat16:
      return RowType::kBFloat16;
    default:
      TORCH_CHECK(false, "autoep: no kernel for dtype ", type);
  }
}

// `tensor` must stay alive until the launch.
inline Rows RowsOf(const at::Tensor& tensor) { return {tensor.data_ptr(), RowTypeOf(tensor.scalar_type())}; }

// Per-choice factors as the kernels take them; `wide` is the wider of the matrices' dtypes.
inline at::Tensor Factors(const std::optional<at::Tensor>& values, at::ScalarType wide) {
  return values ? values->to(AccumulateType(wide)).contiguous() : at::Tensor();
}

inline const void* DataOrNull(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

}  // namespace autoep::ops::cuda

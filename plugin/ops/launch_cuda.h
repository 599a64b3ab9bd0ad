// SPDX-License-Identifier: Apache-2.0
// From tensors to the arguments of the CUDA row kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string>

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

inline Rows RowsOrNone(const at::Tensor& tensor) { return tensor.defined() ? RowsOf(tensor) : Rows{nullptr, RowType::kFloat}; }

// order: int64 or int32, contiguous; a position from `rows` on is none.
inline Order OrderOf(const at::Tensor& order, int64_t rows) { return {order.data_ptr(), order.scalar_type() == at::kInt, rows}; }

inline const void* DataOrNull(const std::optional<at::Tensor>& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

// Sorts the pairs of ids [T, k] (contiguous) on the current stream, and throws if an earlier call's ids were wrong.
void LaunchOrder(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string& layer,
                 const PairsOut& out);

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// combine: rows back to their tokens, summed over the choices. Device kernels; the op is in combine.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace autoep::ops {

// Of the sum of such rows with such weights.
inline at::ScalarType SumType(const at::Tensor& rows, const std::optional<at::Tensor>& weights) {
  return weights ? c10::promoteTypes(rows.scalar_type(), weights->scalar_type()) : rows.scalar_type();
}

namespace cpu {
// rows [P, H], order [T, k] int64; a choice whose position is P or more has no row and adds nothing. Returns [T, H] of dtype
// `type`: sum over j of weights[t, j] * rows[order[t, j]], in the order of j, accumulated in fp32 or fp64. `type` is rows' dtype or
// wider.
at::Tensor SumRows(const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order, at::ScalarType type);
// Into out, contiguous.
void SumInto(const at::Tensor& out, const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order);

// Returns [T, k], fp32 or fp64: dot(tokens[t], rows[order[t, j]]), 0 where there is no row. tokens [T, H] has rows' dtype or a
// wider one.
at::Tensor DotRows(const at::Tensor& tokens, const at::Tensor& rows, const at::Tensor& order);
}  // namespace cpu

namespace cuda {
at::Tensor SumRows(const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order, at::ScalarType type);
void SumInto(const at::Tensor& out, const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order);
at::Tensor DotRows(const at::Tensor& tokens, const at::Tensor& rows, const at::Tensor& order);
}  // namespace cuda

}  // namespace autoep::ops

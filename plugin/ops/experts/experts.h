// SPDX-License-Identifier: Apache-2.0
// experts: the grouped feed-forward. Device kernels; the op is in experts.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>

#include "plugin/contract/activation.h"

namespace autoep::ops {

// One call's operands, checked. Everything is contiguous; biases have the weights' dtype.
struct ExpertsCall {
  at::Tensor rows;     // [R, H]
  at::Tensor offsets;  // [S] int32
  at::Tensor gate_up;  // [S, 2I or I, H]
  at::Tensor down;     // [S, H, I]
  std::optional<at::Tensor> gate_up_bias;
  std::optional<at::Tensor> down_bias;
  contract::ActivationSpec activation;
  double alpha = 1;  // kClampedSwiglu only
  double limit = 0;
};

// A call without its offsets, checked; throws with sentences that name the layer.
ExpertsCall CheckedExperts(const at::Tensor& rows, const at::Tensor& gate_up, const at::Tensor& down,
                           const std::optional<at::Tensor>& gate_up_bias, const std::optional<at::Tensor>& down_bias,
                           const std::string& activation, at::ArrayRef<double> args, const std::string& layer);

// Undefined where not wanted.
struct ExpertsGrads {
  at::Tensor rows, gate_up, down, gate_up_bias, down_bias;
};

struct ExpertsOut {
  at::Tensor out;     // [R, H]
  at::Tensor hidden;  // [R, 2I or I] in rows' dtype, before the activation; undefined unless asked for
};

namespace cpu {
ExpertsOut ForwardExperts(const ExpertsCall& call, bool keep_hidden);
// needs: rows, gate_up, down, gate_up_bias, down_bias. Experts without rows get zeros.
ExpertsGrads BackwardExperts(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& hidden,
                             const std::array<bool, 5>& needs);
}  // namespace cpu

namespace cuda {
ExpertsOut ForwardExperts(const ExpertsCall& call, bool keep_hidden);
ExpertsGrads BackwardExperts(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& hidden,
                             const std::array<bool, 5>& needs);
}  // namespace cuda

}  // namespace autoep::ops

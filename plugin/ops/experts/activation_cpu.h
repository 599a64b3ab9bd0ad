// SPDX-License-Identifier: Apache-2.0
// The activations and their derivatives on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "plugin/ops/experts/experts.h"

namespace autoep::ops::cpu {

// hidden [n, 2I or I] in rows' dtype, contiguous -> activated [n, I] in fp32 or fp64 (`out`, contiguous).
void Activate(const ExpertsCall& call, const at::Tensor& hidden, at::Tensor& out);

// grad [n, I], the gradient of Activate's out, in its dtype -> the gradient of hidden, [n, 2I or I] in the same dtype (`out`).
void ActivateBackward(const ExpertsCall& call, const at::Tensor& hidden, const at::Tensor& grad, at::Tensor& out);

}  // namespace autoep::ops::cpu

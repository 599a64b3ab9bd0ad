// SPDX-License-Identifier: Apache-2.0
// linear with sums of fp32 of operands of 16 bits, at their rate: what routers mean that widen tokens and weights first.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace autoep::ops {

// The operands of linear: x [.., H], gate [E, H], bias [E].
struct LinearOperands {
  const at::Tensor& x;
  const at::Tensor& gate;
  const std::optional<at::Tensor>& bias;

  // Contiguous, of one device and one dtype of 16 bits, and of shapes that linear takes.
  bool AreNarrow() const;
  bool GiveGradients() const;
};

// x @ gate^T + bias, fp32 [.., E]: a product of two values of 16 bits is exact in fp32, so that only the order of the sums tells
// it from linear of widened copies. Of its gradients, too, only the results are rounded. Differentiable. None where the operands
// are not narrow, or fp16 that gives gradients, which lacks exponents for their terms.
std::optional<at::Tensor> TryWideLinear(const LinearOperands& operands);

}  // namespace autoep::ops

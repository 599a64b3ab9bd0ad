// SPDX-License-Identifier: Apache-2.0
// Activations by torch's own elementwise kernels, which are vectorized for the processor at hand; gating and clamping are around.
#include "plugin/ops/experts/activation_cpu.h"

#include <ATen/ops/add.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/le.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/threshold_backward.h>

#include <limits>
#include <string_view>

#include "plugin/ops/checks.h"

namespace autoep::ops::cpu {
namespace {

using contract::Activation;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

std::string_view Approximation(Activation kind) { return kind == Activation::kGeluTanh ? "tanh" : "none"; }

// hidden in the dtype of sums, and its halves. Where the activation is not gated, gate is all of it and up undefined.
struct Parts {
  Parts(const ExpertsCall& call, const at::Tensor& hidden) : all(hidden.to(AccumulateType(hidden.scalar_type()))), gate(all) {
    if (!call.activation.gated) return;
    const int64_t inner = hidden.size(1) / 2;
    gate = all.narrow(1, 0, inner);
    up = all.narrow(1, inner, inner);
  }
  at::Tensor all, gate, up;
};

// Of the clamped SwiGLU.
at::Tensor ClampedGate(const ExpertsCall& call, const at::Tensor& gate) { return at::clamp(gate, -kNoLimit, call.limit); }

at::Tensor ShiftedUp(const ExpertsCall& call, const at::Tensor& up) {
  return at::clamp(up, -call.limit, call.limit).add_(call.activation.shift);
}

void ValueOut(const ExpertsCall& call, const at::Tensor& gate, at::Tensor& out) {
  switch (call.activation.kind) {
    case Activation::kSilu:
      at::silu_out(out, gate);
      return;
    case Activation::kGelu:
    case Activation::kGeluTanh:
      at::gelu_out(out, gate, Approximation(call.activation.kind));
      return;
    case Activation::kRelu:
      at::clamp_out(out, gate, 0, kNoLimit);
      return;
    case Activation::kReluSquared:
      at::clamp_out(out, gate, 0, kNoLimit).square_();
      return;
    case Activation::kClampedSwiglu: {
      const at::Tensor clamped = ClampedGate(call, gate);
      at::sigmoid_out(out, at::mul(clamped, call.alpha)).mul_(clamped);
      return;
    }
  }
}

// out = grad times the derivative at gate.
void SlopeOut(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& gate, at::Tensor& out) {
  switch (call.activation.kind) {
    case Activation::kSilu:
      at::silu_backward_out(out, grad, gate);
      return;
    case Activation::kGelu:
    case Activation::kGeluTanh:
      at::gelu_backward_out(out, grad, gate, Approximation(call.activation.kind));
      return;
    case Activation::kRelu:
      at::threshold_backward_out(out, grad, gate, 0);
      return;
    case Activation::kReluSquared:
      at::mul_out(out, grad, at::relu(gate).mul_(2));
      return;
    case Activation::kClampedSwiglu: {
      // x sigmoid(a x) has the slope s + a x s (1 - s) with s = sigmoid(a x).
      const at::Tensor scaled = ClampedGate(call, gate).mul_(call.alpha);
      const at::Tensor s = at::sigmoid(scaled);
      at::mul_out(out, grad, scaled.mul_(at::mul(s, -1).add_(1)).add_(1).mul_(s));
      out.mul_(at::le(gate, call.limit));
      return;
    }
  }
}

}  // namespace

void Activate(const ExpertsCall& call, const at::Tensor& hidden, at::Tensor& out) {
  const Parts parts(call, hidden);
  ValueOut(call, parts.gate, out);
  if (!call.activation.gated) return;
  out.mul_(call.activation.kind == Activation::kClampedSwiglu ? ShiftedUp(call, parts.up) : parts.up);
}

void ActivateBackward(const ExpertsCall& call, const at::Tensor& hidden, const at::Tensor& grad, at::Tensor& out) {
  const Parts parts(call, hidden);
  if (!call.activation.gated) return SlopeOut(call, grad, parts.gate, out);
  const int64_t inner = grad.size(1);
  at::Tensor gate_grad = out.narrow(1, 0, inner);
  at::Tensor up_grad = out.narrow(1, inner, inner);
  const bool clamped = call.activation.kind == Activation::kClampedSwiglu;
  ValueOut(call, parts.gate, up_grad);
  up_grad.mul_(grad);
  if (clamped) up_grad.mul_(at::le(parts.up.abs(), call.limit));
  SlopeOut(call, at::mul(grad, clamped ? ShiftedUp(call, parts.up) : parts.up), parts.gate, gate_grad);
}

}  // namespace autoep::ops::cpu

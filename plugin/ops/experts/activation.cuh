// SPDX-License-Identifier: Apache-2.0
// The activations and their derivatives on a GPU, one element at a time, in fp32 or fp64.
#pragma once

#include <type_traits>

#include "plugin/ops/experts/activation_cuda.h"

namespace autoep::ops::cuda {

template <typename S>
__device__ __forceinline__ S Sigmoid(S x) {
  if constexpr (std::is_same_v<S, float>) {
    float exp;  // of -x; what is denormal vanishes beside 1, and __expf would take three instructions to keep it
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exp) : "f"(x * -1.4426950408889634f));
    return __fdividef(1.0f, 1.0f + exp);
  } else {
    return S{1} / (S{1} + exp(-x));
  }
}

// Of the gate, or of the only half: its value, and its slope.
template <typename S>
struct Slope {
  S value, slope;
};

template <typename S>
__device__ __forceinline__ Slope<S> Activate(const ActivationCall& call, S x) {
  constexpr S kInverseRoot2 = 0.70710678118654752440, kDensity = 0.39894228040143267794;  // 1/sqrt(2), 1/sqrt(2 pi)
  constexpr S kTanhScale = 0.79788456080286535588, kCubic = 0.044715;                     // sqrt(2/pi)
  switch (call.spec.kind) {
    case contract::Activation::kSilu:
    case contract::Activation::kClampedSwiglu: {
      const S alpha = call.spec.kind == contract::Activation::kSilu ? S{1} : static_cast<S>(call.alpha);
      const S s = Sigmoid(alpha * x);
      return {x * s, s + alpha * x * s * (S{1} - s)};
    }
    case contract::Activation::kGelu: {
      const S cumulative = S{0.5} * (S{1} + erf(x * kInverseRoot2));
      return {x * cumulative, cumulative + x * kDensity * exp(S{-0.5} * x * x)};
    }
    case contract::Activation::kGeluTanh: {
      const S t = tanh(kTanhScale * (x + kCubic * x * x * x));
      const S slope = kTanhScale * (S{1} + 3 * kCubic * x * x);
      return {S{0.5} * x * (S{1} + t), S{0.5} * (S{1} + t) + S{0.5} * x * (S{1} - t * t) * slope};
    }
    case contract::Activation::kRelu:
      return {x <= 0 ? S{0} : x, x <= 0 ? S{0} : S{1}};
    case contract::Activation::kReluSquared:
      return {x <= 0 ? S{0} : x * x, x <= 0 ? S{0} : 2 * x};
  }
  return {};
}

// NaN stays NaN, as torch's clamp and relu have it.
template <typename S>
__device__ __forceinline__ S ClampAbove(S x, S limit) {
  if constexpr (std::is_same_v<S, float>) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(limit));
    return x;
  } else {
    return x > limit ? limit : x;
  }
}

template <typename S>
__device__ __forceinline__ S Clamp(S x, S limit) {
  return -ClampAbove(-ClampAbove(x, limit), limit);
}

// act(gate) * up.
template <typename S>
__device__ __forceinline__ S Gated(const ActivationCall& call, S gate, S up) {
  if (call.spec.kind == contract::Activation::kClampedSwiglu) {
    const S limit = static_cast<S>(call.limit);
    gate = ClampAbove(gate, limit);
    up = Clamp(up, limit) + static_cast<S>(call.spec.shift);
  }
  return Activate(call, gate).value * up;
}

// Calls visit.operator()<kind>(), so that the kind is known when the visitor is compiled.
template <typename Visit>
__device__ __forceinline__ void VisitActivation(contract::Activation kind, Visit visit) {
  switch (kind) {
    case contract::Activation::kSilu:
      return visit.template operator()<contract::Activation::kSilu>();
    case contract::Activation::kClampedSwiglu:
      return visit.template operator()<contract::Activation::kClampedSwiglu>();
    case contract::Activation::kGelu:
      return visit.template operator()<contract::Activation::kGelu>();
    case contract::Activation::kGeluTanh:
      return visit.template operator()<contract::Activation::kGeluTanh>();
    case contract::Activation::kRelu:
      return visit.template operator()<contract::Activation::kRelu>();
    case contract::Activation::kReluSquared:
      return visit.template operator()<contract::Activation::kReluSquared>();
  }
}

// Replaces gate and up by their gradients.
template <typename S>
__device__ __forceinline__ void GatedBackward(const ActivationCall& call, S grad, S& gate, S& up) {
  S pass_gate = 1, pass_up = 1;
  if (call.spec.kind == contract::Activation::kClampedSwiglu) {
    const S limit = static_cast<S>(call.limit);
    pass_gate = gate <= limit ? 1 : 0;
    pass_up = up >= -limit && up <= limit ? 1 : 0;
    gate = ClampAbove(gate, limit);
    up = Clamp(up, limit) + static_cast<S>(call.spec.shift);
  }
  const Slope<S> at = Activate(call, gate);
  gate = grad * up * at.slope * pass_gate;
  up = grad * at.value * pass_up;
}

}  // namespace autoep::ops::cuda

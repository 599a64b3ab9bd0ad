// SPDX-License-Identifier: Apache-2.0
// Each activation is a value and a derivative; gating and clamping are around it.
#include "plugin/ops/experts/activation_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <type_traits>

#include "plugin/ops/visit_dtype.h"

namespace autoep::ops::cpu {
namespace {

using contract::Activation;

constexpr int64_t kElementsPerTask = 4096;

template <typename T>
struct Point {
  T value;
  T slope;
};

template <typename T>
T Sigmoid(T x) {
  return T{1} / (T{1} + std::exp(-x));
}

// x * sigmoid(alpha * x)
template <typename T>
Point<T> Swish(T x, T alpha) {
  const T s = Sigmoid(alpha * x);
  return {x * s, s * (T{1} + alpha * x * (T{1} - s))};
}

template <typename T>
Point<T> Gelu(T x) {
  const T cdf = T{0.5} * (T{1} + std::erf(x * std::numbers::sqrt2_v<T> / 2));
  const T pdf = std::exp(-x * x / 2) * std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>;
  return {x * cdf, cdf + x * pdf};
}

template <typename T>
Point<T> GeluTanh(T x) {
  const T scale = std::numbers::sqrt2_v<T> * std::numbers::inv_sqrtpi_v<T>;
  const T cubic = T(0.044715);
  const T t = std::tanh(scale * (x + cubic * x * x * x));
  const T inner = scale * (T{1} + 3 * cubic * x * x);
  return {x * (T{1} + t) / 2, (T{1} + t) / 2 + x * (T{1} - t * t) * inner / 2};
}

// Calls visit(function from x to its Point).
template <typename T, typename Visit>
void VisitActivation(const ExpertsCall& call, Visit visit) {
  switch (call.activation.kind) {
    case Activation::kSilu:
      return visit([](T x) { return Swish(x, T{1}); });
    case Activation::kGelu:
      return visit([](T x) { return Gelu(x); });
    case Activation::kGeluTanh:
      return visit([](T x) { return GeluTanh(x); });
    case Activation::kRelu:
      return visit([](T x) { return Point<T>{std::max(x, T{0}), T(x > 0)}; });
    case Activation::kReluSquared:
      return visit([](T x) { return Point<T>{x > 0 ? x * x : T{0}, x > 0 ? 2 * x : T{0}}; });
    case Activation::kClampedSwiglu:
      return visit([alpha = T(call.alpha)](T x) { return Swish(x, alpha); });
  }
}

// What stands beside the activation: gate and up of one element, clamped and shifted where the activation says so.
template <typename T>
struct GateUp {
  T gate, up;
  bool gate_moves = true;  // false: clamped, so without a gradient
  bool up_moves = true;
};

template <typename T, typename Row>
GateUp<T> Load(const ExpertsCall& call, const Row* gate, const Row* up) {
  GateUp<T> pair{static_cast<T>(*gate), static_cast<T>(*up)};
  if (call.activation.kind != Activation::kClampedSwiglu) return pair;
  const T limit = T(call.limit);
  pair.gate_moves = pair.gate <= limit;
  pair.up_moves = pair.up >= -limit && pair.up <= limit;
  return {std::min(pair.gate, limit), std::clamp(pair.up, -limit, limit) + T(call.activation.shift), pair.gate_moves, pair.up_moves};
}

// Calls body(T, Row) with the tensors' types.
template <typename Body>
void VisitTypes(const at::Tensor& hidden, Body body) {
  VisitFloat(hidden.scalar_type(), [&]<typename Row>() {
    using T = std::conditional_t<std::is_same_v<Row, double>, double, float>;
    body.template operator()<T, Row>();
  });
}

int64_t RowsPerTask(int64_t inner) { return kElementsPerTask / (inner + 1) + 1; }

}  // namespace

void Activate(const ExpertsCall& call, const at::Tensor& hidden, at::Tensor& out) {
  const int64_t width = hidden.size(1);
  const int64_t inner = out.size(1);
  VisitTypes(hidden, [&]<typename T, typename Row>() {
    const Row* from = hidden.const_data_ptr<Row>();
    T* to = out.mutable_data_ptr<T>();
    VisitActivation<T>(call, [&](auto activation) {
      at::parallel_for(0, hidden.size(0), RowsPerTask(inner), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const Row* in = from + row * width;
          T* target = to + row * inner;
          for (int64_t i = 0; i < inner; ++i) {
            if (call.activation.gated) {
              const GateUp<T> pair = Load<T>(call, in + i, in + inner + i);
              target[i] = activation(pair.gate).value * pair.up;
            } else {
              target[i] = activation(static_cast<T>(in[i])).value;
            }
          }
        }
      });
    });
  });
}

void ActivateBackward(const ExpertsCall& call, const at::Tensor& hidden, const at::Tensor& grad, at::Tensor& out) {
  const int64_t width = hidden.size(1);
  const int64_t inner = grad.size(1);
  VisitTypes(hidden, [&]<typename T, typename Row>() {
    const Row* from = hidden.const_data_ptr<Row>();
    const T* grads = grad.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    VisitActivation<T>(call, [&](auto activation) {
      at::parallel_for(0, hidden.size(0), RowsPerTask(inner), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const Row* in = from + row * width;
          const T* above = grads + row * inner;
          T* target = to + row * width;
          for (int64_t i = 0; i < inner; ++i) {
            if (call.activation.gated) {
              const GateUp<T> pair = Load<T>(call, in + i, in + inner + i);
              const Point<T> point = activation(pair.gate);
              target[i] = pair.gate_moves ? above[i] * pair.up * point.slope : T{0};
              target[inner + i] = pair.up_moves ? above[i] * point.value : T{0};
            } else {
              target[i] = above[i] * activation(static_cast<T>(in[i])).slope;
            }
          }
        }
      });
    });
  });
}

}  // namespace autoep::ops::cpu

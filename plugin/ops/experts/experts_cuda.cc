// SPDX-License-Identifier: Apache-2.0
// experts on CUDA, from torch's own parts. bf16 of aligned sizes takes torch's grouped GEMM and never waits for the host; all
// else is one GEMM an expert, whose row counts the host must read.
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>

#include <vector>

#include "plugin/ops/experts/experts.h"

namespace autoep::ops::cuda {
namespace {

using contract::Activation;

constexpr int64_t kGroupedAlignment = 8;  // elements: 16 bytes of bf16

// How this call's GEMMs are done.
class Gemms {
 public:
  explicit Gemms(const ExpertsCall& call) : offsets_(call.offsets), grouped_(Aligned(call)) {
    if (grouped_) return;
    const at::Tensor ends = offsets_.cpu();
    ends_.assign(ends.const_data_ptr<int32_t>(), ends.const_data_ptr<int32_t>() + ends.numel());
  }

  // [R, m] = in [R, k] x weight[expert] [m, k]^T
  at::Tensor Linear(const at::Tensor& in, const at::Tensor& weight) const {
    if (grouped_) return at::_grouped_mm(in, weight.transpose(-2, -1), offsets_).contiguous();
    at::Tensor out = at::empty({in.size(0), weight.size(1)}, in.options());
    ForExperts([&](int64_t expert, int64_t begin, int64_t rows) {
      at::Tensor part = out.narrow(0, begin, rows);
      at::mm_out(part, in.narrow(0, begin, rows), weight[expert].t());
    });
    return out;
  }

  // [R, k] = grad [R, m] x weight[expert] [m, k]
  at::Tensor LinearBackward(const at::Tensor& grad, const at::Tensor& weight) const {
    if (grouped_) return at::_grouped_mm(grad, weight, offsets_).contiguous();
    at::Tensor out = at::empty({grad.size(0), weight.size(2)}, grad.options());
    ForExperts([&](int64_t expert, int64_t begin, int64_t rows) {
      at::Tensor part = out.narrow(0, begin, rows);
      at::mm_out(part, grad.narrow(0, begin, rows), weight[expert]);
    });
    return out;
  }

  // [S, m, k]: grad [R, m]^T x in [R, k] of each expert's rows; zeros for an expert without rows
  at::Tensor WeightGrad(const at::Tensor& grad, const at::Tensor& in) const {
    if (grouped_) return at::_grouped_mm(grad.t(), in, offsets_).contiguous();
    at::Tensor out = at::zeros({offsets_.size(0), grad.size(1), in.size(1)}, grad.options());
    ForExperts([&](int64_t expert, int64_t begin, int64_t rows) {
      at::Tensor part = out[expert];
      at::mm_out(part, grad.narrow(0, begin, rows).t(), in.narrow(0, begin, rows));
    });
    return out;
  }

 private:
  static bool Aligned(const ExpertsCall& call) {
    const auto aligned = [](int64_t size) { return size % kGroupedAlignment == 0; };
    return call.rows.scalar_type() == at::kBFloat16 && aligned(call.rows.size(1)) && aligned(call.gate_up.size(1)) &&
           aligned(call.down.size(2));
  }

  template <typename Body>
  void ForExperts(Body body) const {
    int64_t begin = 0;
    for (size_t expert = 0; expert < ends_.size(); ++expert) {
      if (ends_[expert] > begin) body(static_cast<int64_t>(expert), begin, ends_[expert] - begin);
      begin = ends_[expert];
    }
  }

  const at::Tensor offsets_;
  const bool grouped_;
  std::vector<int64_t> ends_;
};

// [R] int64: the expert of each row.
at::Tensor ExpertOfRow(const ExpertsCall& call) {
  const at::Tensor rows = at::arange(call.rows.size(0), call.offsets.options());
  return at::searchsorted(call.offsets, rows, /*out_int32=*/false, /*right=*/true);
}

at::Tensor WithBias(const ExpertsCall& call, at::Tensor rows, const std::optional<at::Tensor>& bias) {
  return bias ? rows.add_(bias->index_select(0, ExpertOfRow(call))) : rows;
}

at::Tensor BiasGrad(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& bias) {
  const at::Tensor sums =
      at::zeros(bias.sizes(), bias.options().dtype(grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  return at::index_add(sums, 0, ExpertOfRow(call), grad.to(sums.scalar_type())).to(bias.scalar_type());
}

at::Tensor Swish(const at::Tensor& x, double alpha) { return x.mul(at::sigmoid(x.mul(alpha))); }

at::Tensor Activate(const ExpertsCall& call, const at::Tensor& x) {
  switch (call.activation.kind) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kReluSquared:
      return at::relu(x).square();
    case Activation::kClampedSwiglu:
      return Swish(x, call.alpha);
  }
  TORCH_CHECK(false, "autoep: an activation without a CUDA kernel");
}

at::Tensor ActivateBackward(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& x) {
  switch (call.activation.kind) {
    case Activation::kSilu:
      return at::silu_backward(grad, x);
    case Activation::kGelu:
      return at::gelu_backward(grad, x);
    case Activation::kGeluTanh:
      return at::gelu_backward(grad, x, "tanh");
    case Activation::kRelu:
      return at::threshold_backward(grad, x, 0);
    case Activation::kReluSquared:
      return grad.mul(at::relu(x)).mul(2);
    case Activation::kClampedSwiglu: {
      const at::Tensor s = at::sigmoid(x.mul(call.alpha));
      return grad.mul(s.add(x.mul(s).mul(s.neg().add(1)).mul(call.alpha)));
    }
  }
  TORCH_CHECK(false, "autoep: an activation without a CUDA kernel");
}

// The two halves of hidden as the activation takes them.
struct GateUp {
  at::Tensor gate, up;
};

GateUp Halves(const ExpertsCall& call, const at::Tensor& hidden) {
  const int64_t inner = hidden.size(1) / 2;
  GateUp halves{hidden.narrow(1, 0, inner), hidden.narrow(1, inner, inner)};
  if (call.activation.kind != Activation::kClampedSwiglu) return halves;
  return {at::clamp(halves.gate, std::nullopt, call.limit), at::clamp(halves.up, -call.limit, call.limit).add(1)};
}

// A step of its own in 16 bits would round between any two of its ops.
at::Tensor Widened(const at::Tensor& tensor) { return tensor.element_size() < 4 ? tensor.to(at::kFloat) : tensor; }

at::Tensor Activated(const ExpertsCall& call, const at::Tensor& narrow) {
  const at::Tensor hidden = Widened(narrow);
  if (!call.activation.gated) return Activate(call, hidden).to(narrow.scalar_type());
  const GateUp halves = Halves(call, hidden);
  return Activate(call, halves.gate).mul(halves.up).to(narrow.scalar_type());
}

at::Tensor ActivatedBackward(const ExpertsCall& call, const at::Tensor& narrow, const at::Tensor& narrow_grad) {
  const at::Tensor hidden = Widened(narrow);
  const at::Tensor grad = Widened(narrow_grad);
  if (!call.activation.gated) return ActivateBackward(call, grad, hidden).to(narrow.scalar_type());
  const GateUp halves = Halves(call, hidden);
  at::Tensor gate = ActivateBackward(call, grad.mul(halves.up), halves.gate);
  at::Tensor up = grad.mul(Activate(call, halves.gate));
  if (call.activation.kind == Activation::kClampedSwiglu) {
    const int64_t inner = hidden.size(1) / 2;
    gate = gate.mul(hidden.narrow(1, 0, inner).le(call.limit));
    up = up.mul(hidden.narrow(1, inner, inner).abs().le(call.limit));
  }
  return at::cat({gate, up}, 1).to(narrow.scalar_type());
}

}  // namespace

ExpertsOut ForwardExperts(const ExpertsCall& call, bool keep_hidden) {
  const c10::cuda::CUDAGuard guard(call.rows.device());
  if (call.rows.size(0) == 0) {
    return {at::empty(call.rows.sizes(), call.rows.options()), at::empty({0, call.gate_up.size(1)}, call.rows.options())};
  }
  const Gemms gemms(call);
  const at::Tensor hidden = WithBias(call, gemms.Linear(call.rows, call.gate_up), call.gate_up_bias);
  at::Tensor out = WithBias(call, gemms.Linear(Activated(call, hidden), call.down), call.down_bias);
  return {out, keep_hidden ? hidden : at::Tensor()};
}

ExpertsGrads BackwardExperts(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& hidden,
                             const std::array<bool, 5>& needs) {
  const c10::cuda::CUDAGuard guard(call.rows.device());
  const auto zeros = [](const at::Tensor& tensor) { return at::zeros(tensor.sizes(), tensor.options()); };
  ExpertsGrads grads;
  if (call.rows.size(0) == 0) {
    if (needs[0]) grads.rows = zeros(call.rows);
    if (needs[1]) grads.gate_up = zeros(call.gate_up);
    if (needs[2]) grads.down = zeros(call.down);
    if (needs[3]) grads.gate_up_bias = zeros(*call.gate_up_bias);
    if (needs[4]) grads.down_bias = zeros(*call.down_bias);
    return grads;
  }
  const Gemms gemms(call);
  if (needs[4]) grads.down_bias = BiasGrad(call, grad, *call.down_bias);
  if (needs[2]) grads.down = gemms.WeightGrad(grad, Activated(call, hidden));
  if (!needs[0] && !needs[1] && !needs[3]) return grads;
  const at::Tensor grad_hidden = ActivatedBackward(call, hidden, gemms.LinearBackward(grad, call.down));
  if (needs[3]) grads.gate_up_bias = BiasGrad(call, grad_hidden, *call.gate_up_bias);
  if (needs[1]) grads.gate_up = gemms.WeightGrad(grad_hidden, call.rows);
  if (needs[0]) grads.rows = gemms.LinearBackward(grad_hidden, call.gate_up);
  return grads;
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// experts on CUDA. bf16 and fp16 on Hopper have kernels of their own; else bf16 of aligned sizes takes torch's grouped GEMM.
// Neither waits for the host. All else is one GEMM an expert, whose row counts the host must read.
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <vector>

#include "plugin/ops/experts/experts.h"
#include "plugin/ops/experts/hopper_cuda.h"
#include "plugin/ops/launch_cuda.h"

namespace autoep::ops::cuda {
namespace {

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

// hidden [R, 2I or I] gets its bias; returns [R, I].
at::Tensor Activated(const ExpertsCall& call, const at::Tensor& hidden, const std::optional<at::Tensor>& bias) {
  at::Tensor out = at::empty({hidden.size(0), call.down.size(2)}, hidden.options());
  ActivateRows(ActivationOf(call), RowsOf(hidden), DataOrNull(bias), call.offsets.const_data_ptr<int32_t>(), call.offsets.size(0),
               hidden.size(0), out.size(1), out.data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor ActivatedBackward(const ExpertsCall& call, const at::Tensor& hidden, const at::Tensor& grad) {
  at::Tensor out = at::empty(hidden.sizes(), hidden.options());
  ActivateRowsBackward(ActivationOf(call), RowsOf(hidden), grad.data_ptr(), hidden.size(0), grad.size(1), out.data_ptr(), nullptr,
                       c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor WithBias(const ExpertsCall& call, at::Tensor rows, const std::optional<at::Tensor>& bias) {
  if (!bias) return rows;
  AddBias(RowsOf(rows), bias->data_ptr(), call.offsets.const_data_ptr<int32_t>(), call.offsets.size(0), rows.size(0), rows.size(1),
          c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return rows;
}

at::Tensor BiasGrad(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& bias) {
  at::Tensor out = at::empty(bias.sizes(), bias.options());
  SumGroups(RowsOf(grad), RowsOrNone({}), nullptr, call.offsets.const_data_ptr<int32_t>(), bias.size(0), bias.size(1),
            out.data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

ExpertsOut ForwardExperts(const ExpertsCall& call, bool keep_hidden) {
  const c10::cuda::CUDAGuard guard(call.rows.device());
  if (call.rows.size(0) == 0) {
    return {at::empty(call.rows.sizes(), call.rows.options()), at::empty({0, call.gate_up.size(1)}, call.rows.options())};
  }
  if (HopperRuns(call, call.rows.size(0))) {
    return HopperForward(call, {call.rows.size(0), call.offsets.const_data_ptr<int32_t>()}, keep_hidden);
  }
  const Gemms gemms(call);
  const at::Tensor hidden = gemms.Linear(call.rows, call.gate_up);
  at::Tensor out = WithBias(call, gemms.Linear(Activated(call, hidden, call.gate_up_bias), call.down), call.down_bias);
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
  const bool own_kernels = HopperRuns(call, call.rows.size(0));
  const auto linear_backward = [&](const at::Tensor& of, const at::Tensor& weight) {
    return own_kernels ? HopperAcross(of, weight, call.offsets) : gemms.LinearBackward(of, weight);
  };
  const auto weight_grad = [&](const at::Tensor& of, const at::Tensor& in) {
    return own_kernels ? HopperWeightGrad(of, in, call.offsets) : gemms.WeightGrad(of, in);
  };
  if (needs[4]) grads.down_bias = BiasGrad(call, grad, *call.down_bias);
  if (needs[2]) grads.down = weight_grad(grad, Activated(call, hidden, std::nullopt));
  if (!needs[0] && !needs[1] && !needs[3]) return grads;
  const at::Tensor grad_hidden = ActivatedBackward(call, hidden, linear_backward(grad, call.down));
  if (needs[3]) grads.gate_up_bias = BiasGrad(call, grad_hidden, *call.gate_up_bias);
  if (needs[1]) grads.gate_up = weight_grad(grad_hidden, call.rows);
  if (needs[0]) grads.rows = linear_backward(grad_hidden, call.gate_up);
  return grads;
}

}  // namespace autoep::ops::cuda

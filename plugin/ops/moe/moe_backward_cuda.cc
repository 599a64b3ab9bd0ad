// SPDX-License-Identifier: Apache-2.0
// The gradient of moe, from the tokens, the hidden values before the activation and the order alone. The gradient of a choice's
// weight is the product of what the down projection was given and that one's gradient (arXiv 2512.14080), so that its output need
// not be kept.
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "plugin/ops/experts/hopper_cuda.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/moe/moe.h"

namespace autoep::ops::cuda {
namespace {

class Backward {
 public:
  Backward(const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad)
      : call_(call),
        saved_(saved),
        x_(call.experts.rows),
        grad_(grad.to(x_.scalar_type()).contiguous()),
        weights_(call.weights ? call.weights->contiguous() : at::Tensor()),
        choices_(call.ids.size(1)),
        stream_(c10::cuda::getCurrentCUDAStream()) {}

  MoeGrads Run(const std::array<bool, 6>& needs, const TokensDone& tokens_done) {
    MoeGrads grads;
    at::Tensor rows = Spread(grad_);
    ActivatedGrad(rows, needs[1]);
    if (needs[1]) grads.weights = WeightsGrad();
    if (needs[5]) grads.down_bias = GroupSums(rows, weights_, *call_.experts.down_bias);
    if (needs[3]) grads.down = HopperWeightGrad(rows, activated_, saved_.ends);
    rows.reset();
    activated_.reset();
    if (needs[4]) grads.gate_up_bias = GroupSums(hidden_grad_, {}, *call_.experts.gate_up_bias);
    if (needs[0]) grads.x = TokensGrad();
    tokens_done(grads);
    if (needs[2]) grads.gate_up = GateUpGrad();
    return grads;
  }

 private:
  // hidden_grad_; activated_: what the down projection was given, times the choice's weight; dots_.
  void ActivatedGrad(const at::Tensor& rows, bool dots) {
    activated_ = HopperAcross(rows, call_.experts.down, saved_.ends);
    hidden_grad_ = saved_.hidden_is_free ? saved_.hidden : at::empty(saved_.hidden.sizes(), saved_.hidden.options());
    // A choice without a row has no part in the sum.
    if (dots) dots_ = at::zeros(call_.ids.sizes(), x_.options().dtype(at::kFloat));
    const ChoiceFactors factors{RowsOrNone(weights_), saved_.sorted.const_data_ptr<int32_t>(), activated_.data_ptr(),
                                dots ? dots_.data_ptr() : nullptr};
    ActivateRowsBackward(ActivationOf(call_.experts), RowsOf(saved_.hidden), activated_.data_ptr(), activated_.size(0),
                         activated_.size(1), hidden_grad_.data_ptr(), &factors, stream_);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  at::Tensor WeightsGrad() {
    if (call_.experts.down_bias) {
      const at::Tensor slots = at::searchsorted(saved_.ends, saved_.order, /*out_int32=*/true, /*right=*/true);
      at::Tensor bias_dots = at::empty(dots_.sizes(), dots_.options());
      DotRows(RowsOf(grad_), RowsOf(*call_.experts.down_bias), OrderOf(slots, call_.experts.down_bias->size(0)), slots.numel(),
              choices_, grad_.size(1), bias_dots.data_ptr(), stream_);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      dots_.add_(bias_dots);
    }
    return dots_.to(weights_.scalar_type());
  }

  at::Tensor TokensGrad() {
    const at::Tensor rows = HopperAcross(hidden_grad_, call_.experts.gate_up, saved_.ends);
    at::Tensor out = at::empty(x_.sizes(), x_.options());
    SumRows(RowsOf(rows), RowsOrNone({}), OrderOf(saved_.order, rows.size(0)), x_.size(0), choices_, x_.size(1), RowsOf(out),
            stream_);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return out;
  }

  // The experts' rows of the tokens are made again, at most as much at once as the hidden values' gradient takes beside them.
  at::Tensor GateUpGrad() {
    at::Tensor out = at::empty(call_.experts.gate_up.sizes(), x_.options());
    constexpr int64_t kUnit = 64;
    const int64_t hidden = x_.size(1);
    const int64_t step = std::max(kUnit, std::min(hidden, hidden_grad_.size(1)) / kUnit * kUnit);
    const int64_t parts = (hidden + step - 1) / step;
    const int64_t share = ((hidden + parts - 1) / parts + kUnit - 1) / kUnit * kUnit;
    for (int64_t begin = 0; begin < hidden; begin += share) {
      const int64_t columns = std::min(share, hidden - begin);
      HopperWeightGrad(hidden_grad_, Spread(x_.narrow(1, begin, columns)), saved_.ends, out.narrow(2, begin, columns));
    }
    return out;
  }

  // Of tokens, or of some columns of them.
  at::Tensor Spread(const at::Tensor& tokens) {
    at::Tensor rows = at::empty({call_.num_rows, tokens.size(1)}, tokens.options());
    SpreadRows(RowsOf(tokens), tokens.stride(0), RowsOrNone({}), OrderOf(saved_.order, rows.size(0)), tokens.size(0), choices_,
               tokens.size(1), RowsOf(rows), stream_);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return rows;
  }

  at::Tensor GroupSums(const at::Tensor& rows, const at::Tensor& factors, const at::Tensor& bias) {
    at::Tensor out = at::empty(bias.sizes(), bias.options());
    SumGroups(RowsOf(rows), RowsOrNone(factors), saved_.sorted.const_data_ptr<int32_t>(), saved_.ends.const_data_ptr<int32_t>(),
              bias.size(0), bias.size(1), out.data_ptr(), stream_);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return out;
  }

  const MoeCall& call_;
  const MoeSaved& saved_;
  const at::Tensor x_, grad_, weights_;
  const int64_t choices_;
  const cudaStream_t stream_;
  at::Tensor activated_, hidden_grad_, dots_;
};

}  // namespace

MoeGrads BackwardMoe(const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                     const TokensDone& tokens_done) {
  const c10::cuda::CUDAGuard guard(grad.device());
  return Backward(call, saved, grad).Run(needs, tokens_done);
}

}  // namespace autoep::ops::cuda

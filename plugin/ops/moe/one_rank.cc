// SPDX-License-Identifier: Apache-2.0
// moe where the tokens are: a device's own kernels, or those of dispatch, experts and combine put together.
#include "plugin/ops/checks.h"
#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/moe/moe.h"

namespace autoep::ops {
namespace {

bool OwnKernels(const Kernels& kernels, const MoeCall& call) {
  return kernels.moe_runs != nullptr && !call.scale && kernels.moe_runs(call);
}

at::Tensor Forward(const Kernels& kernels, const MoeCall& call, MoeSaved* saved) {
  const PairOrder pairs = kernels.order_pairs(call.ids, call.placement, 1, call.layer);
  AUTOEP_CHECK(!pairs.bad_id, call.layer, BadId(*pairs.bad_id, call.placement.size(0)));
  const at::Tensor& x = call.experts.rows;
  ExpertsCall experts = call.experts;
  experts.rows = kernels.spread_rows(x, call.scale, pairs.order, call.num_rows, x.scalar_type());
  experts.offsets = pairs.ends.narrow(0, 0, experts.gate_up.size(0));
  const ExpertsOut done = kernels.forward_experts(experts, saved != nullptr);
  if (saved != nullptr) *saved = {done.hidden, pairs.order, experts.offsets, {}, done.out};
  const at::Tensor result = kernels.sum_rows(done.out, call.weights, pairs.order, SumType(x, call.weights)).to(call.dtype);
  return call.out.defined() ? call.out.copy_(result) : result;
}

MoeGrads Backward(const Kernels& kernels, const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad,
                  const std::array<bool, 6>& needs) {
  const at::Tensor& x = call.experts.rows;
  const at::ScalarType type = x.scalar_type();
  ExpertsCall experts = call.experts;
  experts.rows = kernels.spread_rows(x, std::nullopt, saved.order, call.num_rows, type);
  experts.offsets = saved.ends;
  const ExpertsGrads own =
      kernels.backward_experts(experts, kernels.spread_rows(grad, call.weights, saved.order, call.num_rows, type), saved.hidden,
                               {needs[0], needs[2], needs[3], needs[4], needs[5]});
  MoeGrads grads{{}, {}, own.gate_up, own.down, own.gate_up_bias, own.down_bias};
  if (needs[0]) grads.x = kernels.sum_rows(own.rows, std::nullopt, saved.order, type);
  if (needs[1]) grads.weights = kernels.dot_rows(grad, saved.out, saved.order).to(call.weights->scalar_type());
  return grads;
}

}  // namespace

at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved) {
  const Kernels& kernels = KernelsFor(call.experts.rows.device());
  return OwnKernels(kernels, call) ? kernels.forward_moe(call, saved) : Forward(kernels, call, saved);
}

MoeGrads BackwardMoe(const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                     const TokensDone& tokens_done) {
  const Kernels& kernels = KernelsFor(call.experts.rows.device());
  if (OwnKernels(kernels, call)) return kernels.backward_moe(call, saved, grad, needs, tokens_done);
  MoeGrads grads = Backward(kernels, call, saved, grad, needs);
  tokens_done(grads);
  return grads;
}

}  // namespace autoep::ops

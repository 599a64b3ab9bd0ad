// SPDX-License-Identifier: Apache-2.0
// Slots and weights travel with the tokens, so that each way is one exchange.
#include "plugin/ops/moe/ranks.h"

#include <vector>

#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"

namespace autoep::ops {

at::Tensor ForwardRanks(MoeCall& call, at::ScalarType sum, int64_t ep_size, const std::string& group, MoeSaved* saved,
                        Journey& journey) {
  const at::Tensor x = call.experts.rows;
  const at::ScalarType out = call.dtype;
  const PairOrder pairs = KernelsFor(x.device()).order_pairs(call.ids, call.placement, ep_size, call.layer);
  const std::string signature = Signature(x, call.placement.size(0), call.layer) + ", moe";
  const Sent sent = SendTokens(Resolve(group, ep_size, call.layer), x, pairs, call.weights, signature, call.layer);
  call.experts.rows = sent.tokens;
  call.ids = sent.choices.slots;
  call.placement = sent.exchange.Placement(x.device());
  call.weights = sent.choices.factors;
  call.dtype = PartType(x.scalar_type(), sum);
  call.num_rows = sent.exchange.num_rows();
  if (saved != nullptr) journey = {sent.plan.Order(), sent.counts.received};
  const at::Tensor parts = ForwardMoe(call, saved);
  // bf16 is summed in fp32 and rounded once, to whatever is asked for.
  return sent.exchange.ToTokens(parts, call.dtype == at::kBFloat16 ? out : sum).to(out);
}

MoeGrads BackwardRanks(const MoeCall& here, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                       int64_t ep_size, const std::string& group, const Journey& journey) {
  const Exchange exchange(Resolve(group, ep_size, here.layer), SendPlan::FromOrder(journey.order), journey.received, here.layer);
  const at::ScalarType part = PartType(here.experts.rows.scalar_type(), grad.scalar_type());
  MoeGrads grads = BackwardMoe(here, saved, exchange.ToExperts(grad, part), needs);
  std::vector<at::Tensor> back;
  if (needs[0]) back.push_back(grads.x);
  if (needs[1]) back.push_back(grads.weights);
  if (back.empty()) return grads;
  const std::vector<at::Tensor> sums = exchange.ToTokensEach(back);
  if (needs[0]) grads.x = sums.front();
  if (needs[1]) grads.weights = sums.back();
  return grads;
}

}  // namespace autoep::ops

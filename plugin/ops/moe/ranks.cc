// SPDX-License-Identifier: Apache-2.0
// Slots and weights travel with the tokens, so that each way is one exchange. Without a gradient, they travel both ways while
// other tokens are worked on; the gradients of the tokens travel while those of the experts are computed.
#include "plugin/ops/moe/ranks.h"

#include <optional>
#include <vector>

#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/moe/pass_time.h"

namespace autoep::ops {

at::Tensor ForwardRanks(MoeCall& call, at::ScalarType sum, int64_t ep_size, const std::string& group, MoeSaved* saved,
                        Journey& journey) {
  const at::Tensor x = call.experts.rows;
  const at::ScalarType out = call.dtype;
  const PairOrder pairs = KernelsFor(x.device()).order_pairs(call.ids, call.placement, ep_size, call.layer);
  const std::string signature = Signature(x, call.placement.size(0), call.layer) + ", moe";
  const Packed packed = PackTokens(Resolve(group, ep_size, x.device(), call.layer), x, pairs, call.weights, signature, call.layer);
  const Exchange& exchange = packed.exchange;
  call.placement = exchange.Placement(x.device());
  call.dtype = PartType(x.scalar_type(), sum);
  call.num_rows = exchange.num_rows();
  // bf16 is summed in fp32 and rounded once, to whatever is asked for.
  const at::ScalarType type = call.dtype == at::kBFloat16 ? out : sum;
  if (saved == nullptr) {
    const auto work = [&](const Choices& choices, const at::Tensor& tokens, int64_t num_rows, const at::Tensor& answers) {
      MoeCall part = call;
      part.experts.rows = tokens;
      part.ids = choices.slots;
      part.weights = choices.factors;
      part.num_rows = num_rows;
      part.out = answers;
      ForwardMoe(part, nullptr);
    };
    const PassTime seconds(call.experts, call.ids.size(1), ep_size);
    if (const std::optional<at::Tensor> done = exchange.RoundTrip(packed, call.dtype, type, seconds, work)) return done->to(out);
  } else {
    journey = {packed.plan.Order(), packed.counts.received};
  }
  const auto [choices, tokens] = packed.Send();
  call.experts.rows = tokens;
  call.ids = choices.slots;
  call.weights = choices.factors;
  const auto write = [&](const at::Tensor& parts) {
    call.out = parts;
    ForwardMoe(call, saved);
    call.out.reset();
  };
  return exchange.ToTokens(x.size(1), call.dtype, x, type, write).to(out);
}

MoeGrads BackwardRanks(const MoeCall& here, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                       int64_t ep_size, const std::string& group, const Journey& journey) {
  const Exchange exchange(Resolve(group, ep_size, grad.device(), here.layer), SendPlan::FromOrder(journey.order), journey.received,
                          here.layer);
  const at::ScalarType part = PartType(here.experts.rows.scalar_type(), grad.scalar_type());
  std::optional<Exchange::Home> home;
  const auto start = [&](const MoeGrads& grads) {
    std::vector<at::Tensor> back;
    if (needs[0]) back.push_back(grads.x);
    if (needs[1]) back.push_back(grads.weights);
    if (!back.empty()) home = exchange.StartToTokens(back);
  };
  MoeGrads grads = BackwardMoe(here, saved, exchange.ToExperts(grad, part), needs, start);
  if (!home) return grads;
  const std::vector<at::Tensor> sums = home->Wait();
  if (needs[0]) grads.x = sums.front();
  if (needs[1]) grads.weights = sums.back();
  return grads;
}

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The op dispatch and its gradient: checks, the exchange, autograd. Kernels are per device.
#include "plugin/ops/dispatch/dispatch.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <utility>

#include "plugin/ops/checks.h"
#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/recorder.h"

namespace autoep::ops {
namespace {

using DispatchOut = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

void CheckDispatch(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& scale, const std::string& layer, int64_t abi) {
  CheckAbi(abi, layer);
  CheckFloat(x, 2, "x", layer);
  CheckInt64(ids, 2, "ids", layer);
  AUTOEP_CHECK(x.size(0) == ids.size(0), layer, "x has ", x.size(0), " tokens, and ids ", ids.size(0));
  AUTOEP_CHECK(x.device() == ids.device(), layer, "x is on ", x.device(), ", and ids on ", ids.device());
  CheckPerChoice(scale, ids, "scale", layer);
}

DispatchOut DispatchToRanks(const Kernels& kernels, const at::Tensor& x, const PairOrder& pairs, const OptionalTensor& scale,
                            const comm::CommunicatorPtr& communicator, const std::string& layer) {
  const Packed packed = PackTokens(communicator, x, pairs, scale, Signature(x, pairs.by_slot.size(0), layer), layer);
  const auto [choices, tokens] = packed.Send();
  const Arrivals arrivals = packed.exchange.Arrive(choices);
  const at::Tensor rows =
      kernels.spread_rows(tokens, arrivals.factors, arrivals.places, packed.exchange.num_rows(), x.scalar_type());
  return {rows, arrivals.ends, packed.counts.counts, packed.plan.Order(), packed.counts.received};
}

DispatchOut Dispatch(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& scale, const at::Tensor& placement,
                     int64_t ep_size, std::string group, std::string layer, int64_t abi) {
  CheckDispatch(x, ids, scale, layer, abi);
  if (Recorder::Active()) Recorder::Add({RecordedCall::Op::kDispatch, layer, ids.clone(), {}, ids.numel()});
  const Kernels& kernels = KernelsFor(x.device());
  CheckPlacement(placement, ep_size, layer);
  PairOrder pairs = kernels.order_pairs(ids.contiguous(), placement, ep_size, layer);
  if (ep_size == 1) {
    AUTOEP_CHECK(!pairs.bad_id, layer, BadId(*pairs.bad_id, placement.size(0)));
    at::Tensor rows = kernels.spread_rows(x, scale, pairs.order, pairs.order.numel(), x.scalar_type());
    return {rows, pairs.ends, pairs.counts, pairs.order, pairs.by_slot.unsqueeze(0)};
  }
  return DispatchToRanks(kernels, x, pairs, scale, Resolve(group, ep_size, x.device(), layer), layer);
}

// A token's gradient is the sum of its rows', each times its scale.
std::tuple<at::Tensor, at::Tensor> DispatchBackward(const at::Tensor& grad_rows, const OptionalTensor& x,
                                                    const OptionalTensor& scale, const at::Tensor& order, const at::Tensor&,
                                                    const at::Tensor& received, const at::Tensor&, int64_t ep_size,
                                                    std::string group, std::string layer) {
  const Kernels& kernels = KernelsFor(grad_rows.device());
  const at::ScalarType type = grad_rows.scalar_type();
  if (ep_size == 1) {
    at::Tensor grad_x = kernels.sum_rows(grad_rows, scale, order, type);
    if (!x || !scale) return {grad_x, grad_x.new_empty({0})};
    return {grad_x, kernels.dot_rows(*x, grad_rows, order).to(scale->scalar_type())};
  }
  const Exchange exchange(Resolve(group, ep_size, grad_rows.device(), layer), SendPlan::FromOrder(order), received, layer);
  const Arrivals arrivals = exchange.Announce(scale);
  at::Tensor grad_x = exchange.ToTokens(kernels.sum_rows(grad_rows, arrivals.factors, arrivals.places, type), type);
  if (!x || !scale) return {grad_x, grad_x.new_empty({0})};
  const at::Tensor dots = kernels.dot_rows(exchange.ToExperts(*x, x->scalar_type()), grad_rows, arrivals.places);
  return {grad_x, exchange.ToTokens(dots, dots.scalar_type()).to(scale->scalar_type())};
}

class DispatchFunction : public torch::autograd::Function<DispatchFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static Variables forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& ids,
                           const OptionalTensor& scale, const at::Tensor& placement, int64_t ep_size, std::string group,
                           std::string layer, int64_t abi) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::dispatch", "").typed<decltype(Dispatch)>();
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [rows, offsets, counts, order, received] = op.call(x, ids, scale, placement, ep_size, group, layer, abi);
    const bool scaled = scale.has_value() && scale->requires_grad();
    ctx->save_for_backward({scaled ? x : at::Tensor(), scale.value_or(at::Tensor()), order, counts, received, placement});
    ctx->saved_data["ep_size"] = ep_size;
    ctx->saved_data["group"] = std::move(group);
    ctx->saved_data["layer"] = std::move(layer);
    ctx->mark_non_differentiable({offsets, counts, order, received});
    return {rows, offsets, counts, order, received};
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::dispatch_backward", "").typed<decltype(DispatchBackward)>();
    const Variables saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    auto [grad_x, grad_scale] =
        op.call(grads[0], optional(saved[0]), optional(saved[1]), saved[2], saved[3], saved[4], saved[5],
                ctx->saved_data["ep_size"].toInt(), ctx->saved_data["group"].toStringRef(), ctx->saved_data["layer"].toStringRef());
    return {grad_x, {}, saved[0].defined() ? grad_scale : at::Tensor(), {}, {}, {}, {}, {}};
  }
};

DispatchOut DispatchAutograd(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& scale, const at::Tensor& placement,
                             int64_t ep_size, std::string group, std::string layer, int64_t abi) {
  auto out = DispatchFunction::apply(x, ids, scale, placement, ep_size, std::move(group), std::move(layer), abi);
  return {out[0], out[1], out[2], out[3], out[4]};
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CPU, library) {
  library.impl("dispatch", &Dispatch);
  library.impl("dispatch_backward", &DispatchBackward);
}

TORCH_LIBRARY_IMPL(autoep, CUDA, library) {
  library.impl("dispatch", &Dispatch);
  library.impl("dispatch_backward", &DispatchBackward);
}

// The fakes are in Python (autoep/_fakes.py).
TORCH_LIBRARY_IMPL(autoep, Autograd, library) {
  library.impl("dispatch", &DispatchAutograd);
  library.impl("dispatch_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace autoep::ops

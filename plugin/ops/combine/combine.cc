// SPDX-License-Identifier: Apache-2.0
// The op combine and its gradient: checks, the exchange, autograd. Kernels are per device.
#include "plugin/ops/combine/combine.h"

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

using OptionalTensor = std::optional<at::Tensor>;
using TwoTensors = std::tuple<at::Tensor, at::Tensor>;

void CheckCombine(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor& received,
                  int64_t ep_size, const std::string& layer, int64_t abi) {
  CheckAbi(abi, layer);
  CheckFloat(rows, 2, "rows", layer);
  CheckInt64(order, 2, "order", layer);
  CheckInt64(received, 2, "received", layer);
  AUTOEP_CHECK(rows.device() == order.device(), layer, "rows are on ", rows.device(), ", and order on ", order.device());
  CheckPerChoice(weights, ep_size == 1 ? order : order.narrow(1, 0, order.size(1) / 2), "weights", layer);
}

void CheckRowCount(const at::Tensor& rows, int64_t expected, const std::string& layer) {
  AUTOEP_CHECK(rows.size(0) == expected, layer, "combine was given ", rows.size(0), " rows, and dispatch made ", expected);
}

void Record(const OptionalTensor& weights, const std::string& layer) {
  if (Recorder::Active() && weights) Recorder::Add({RecordedCall::Op::kCombine, layer, {}, weights->clone(), weights->numel()});
}

at::Tensor Combine(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor&,
                   const at::Tensor& received, const at::Tensor&, int64_t ep_size, std::string group, std::string layer,
                   int64_t abi) {
  CheckCombine(rows, weights, order, received, ep_size, layer, abi);
  Record(weights, layer);
  const Kernels& kernels = KernelsFor(rows.device());
  const at::ScalarType type = SumType(rows, weights);
  if (ep_size == 1) {
    CheckRowCount(rows, order.numel(), layer);
    return kernels.sum_rows(rows, weights, order, type);
  }
  const Exchange exchange(Resolve(group, ep_size, rows.device(), layer), SendPlan::FromOrder(order), received, layer);
  CheckRowCount(rows, exchange.num_rows(), layer);
  const Arrivals arrivals = exchange.Announce(weights);
  const auto write = [&](const at::Tensor& parts) { kernels.sum_into(parts, rows, arrivals.factors, arrivals.places); };
  return exchange.ToTokens(rows.size(1), PartType(rows.scalar_type(), type), rows, type, write);
}

// Each pair's gradient is its token's, times its weight; it travels as the token did.
TwoTensors CombineBackward(const at::Tensor& grad, const OptionalTensor& rows, const OptionalTensor& weights,
                           const at::Tensor& order, const at::Tensor&, const at::Tensor& received, const at::Tensor&,
                           int64_t num_rows, at::ScalarType rows_dtype, int64_t ep_size, std::string group, std::string layer) {
  const Kernels& kernels = KernelsFor(grad.device());
  const bool wants_weights = rows && weights;
  if (ep_size == 1) {
    at::Tensor grad_rows = kernels.spread_rows(grad, weights, order, num_rows, rows_dtype);
    if (!wants_weights) return {grad_rows, grad.new_empty({0})};
    return {grad_rows, kernels.dot_rows(grad, *rows, order).to(weights->scalar_type())};
  }
  const SendPlan plan = SendPlan::FromOrder(order);
  const Exchange exchange(Resolve(group, ep_size, grad.device(), layer), plan, received, layer);
  const at::Tensor numbers = Numbers(plan, weights);
  const auto [choices, arrived] = exchange.AnnounceWith(Pack(numbers, plan, ep_size, numbers.scalar_type()), weights.has_value(),
                                                        Pack(grad, plan, ep_size, PartType(rows_dtype, grad.scalar_type())));
  const Arrivals arrivals = exchange.Arrive(choices);
  at::Tensor grad_rows = kernels.spread_rows(arrived, arrivals.factors, arrivals.places, num_rows, rows_dtype);
  if (!wants_weights) return {grad_rows, grad.new_empty({0})};
  const at::Tensor dots = kernels.dot_rows(arrived, *rows, arrivals.places);
  return {grad_rows, exchange.ToTokens(dots, dots.scalar_type()).to(weights->scalar_type())};
}

// As its schema has it: the number of rows may be known only at run time.
using CombineBackwardType = TwoTensors(const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                                       const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt, at::ScalarType,
                                       int64_t, std::string, std::string);

class CombineFunction : public torch::autograd::Function<CombineFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, const OptionalTensor& weights,
                            const at::Tensor& order, const at::Tensor& counts, const at::Tensor& received,
                            const at::Tensor& placement, int64_t ep_size, std::string group, std::string layer, int64_t abi) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::combine", "").typed<decltype(Combine)>();
    const at::AutoDispatchBelowADInplaceOrView guard;
    const bool weighted = weights.has_value() && weights->requires_grad();
    at::Tensor out = op.call(rows, weights, order, counts, received, placement, ep_size, group, layer, abi);
    ctx->save_for_backward({weighted ? rows : at::Tensor(), weights.value_or(at::Tensor()), order, counts, received, placement});
    ctx->saved_data["num_rows"] = rows.sym_size(0);
    ctx->saved_data["rows_dtype"] = rows.scalar_type();
    ctx->saved_data["ep_size"] = ep_size;
    ctx->saved_data["group"] = std::move(group);
    ctx->saved_data["layer"] = std::move(layer);
    return out;
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::combine_backward", "").typed<CombineBackwardType>();
    const Variables saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    auto [grad_rows, grad_weights] =
        op.call(grads[0], optional(saved[0]), optional(saved[1]), saved[2], saved[3], saved[4], saved[5],
                ctx->saved_data["num_rows"].toSymInt(), ctx->saved_data["rows_dtype"].toScalarType(),
                ctx->saved_data["ep_size"].toInt(), ctx->saved_data["group"].toStringRef(), ctx->saved_data["layer"].toStringRef());
    return {grad_rows, saved[0].defined() ? grad_weights : at::Tensor(), {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

at::Tensor CombineAutograd(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor& counts,
                           const at::Tensor& received, const at::Tensor& placement, int64_t ep_size, std::string group,
                           std::string layer, int64_t abi) {
  return CombineFunction::apply(rows, weights, order, counts, received, placement, ep_size, std::move(group), std::move(layer),
                                abi);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CPU, library) {
  library.impl("combine", &Combine);
  library.impl("combine_backward", &CombineBackward);
}

TORCH_LIBRARY_IMPL(autoep, CUDA, library) {
  library.impl("combine", &Combine);
  library.impl("combine_backward", &CombineBackward);
}

// The fakes are in Python (autoep/_fakes.py).
TORCH_LIBRARY_IMPL(autoep, Autograd, library) {
  library.impl("combine", &CombineAutograd);
  library.impl("combine_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace autoep::ops

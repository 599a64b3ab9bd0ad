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

at::ScalarType OutType(const at::Tensor& rows, const OptionalTensor& weights) {
  return weights ? c10::promoteTypes(rows.scalar_type(), weights->scalar_type()) : rows.scalar_type();
}

void CheckCombine(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor& received,
                  const std::string& layer, int64_t abi) {
  CheckAbi(abi, layer);
  CheckFloat(rows, 2, "rows", layer);
  CheckInt64(order, 2, "order", layer);
  CheckInt64(received, 2, "received", layer);
  AUTOEP_CHECK(rows.device() == order.device(), layer, "rows are on ", rows.device(), ", and order on ", order.device());
  CheckPerChoice(weights, order, "weights", layer);
}

void Record(const OptionalTensor& weights, const at::Tensor& order, const std::string& layer) {
  if (Recorder::Active() && weights) Recorder::Add({RecordedCall::Op::kCombine, layer, {}, weights->clone(), order.numel()});
}

// The rows of this rank's pairs, in the order of its send buffer.
at::Tensor Returned(const at::Tensor& rows, const at::Tensor& order, const at::Tensor& counts, const at::Tensor& received,
                    const at::Tensor& placement, int64_t ep_size, const std::string& group, const std::string& layer) {
  if (received.is_cpu()) {
    const int64_t expected = received.sum().item<int64_t>();
    AUTOEP_CHECK(rows.size(0) == expected, layer, "combine was given ", rows.size(0), " rows, and dispatch made ", expected);
  }
  at::Tensor returned = Exchange(counts, received, placement, ep_size, group, layer).Return(rows);
  AUTOEP_CHECK(returned.size(0) == order.numel(), layer, returned.size(0), " rows came back for ", order.numel(), " choices");
  return returned;
}

at::Tensor Combine(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor& counts,
                   const at::Tensor& received, const at::Tensor& placement, int64_t ep_size, std::string group, std::string layer,
                   int64_t abi) {
  CheckCombine(rows, weights, order, received, layer, abi);
  Record(weights, order, layer);
  const at::Tensor returned = Returned(rows, order, counts, received, placement, ep_size, group, layer);
  return KernelsFor(rows.device()).sum_rows(returned, weights, order, OutType(rows, weights));
}

TwoTensors CombineTrain(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor& counts,
                        const at::Tensor& received, const at::Tensor& placement, int64_t ep_size, std::string group,
                        std::string layer, int64_t abi) {
  CheckCombine(rows, weights, order, received, layer, abi);
  AUTOEP_CHECK(ep_size > 1, layer, "combine_train is for several ranks");
  Record(weights, order, layer);
  const at::Tensor returned = Returned(rows, order, counts, received, placement, ep_size, group, layer);
  return {KernelsFor(rows.device()).sum_rows(returned, weights, order, OutType(rows, weights)), returned};
}

// Each pair's gradient is its token's, times its weight; it travels as the token's row did.
TwoTensors CombineBackward(const at::Tensor& grad, const OptionalTensor& returned, const OptionalTensor& weights,
                           const at::Tensor& order, const at::Tensor& counts, const at::Tensor& received,
                           const at::Tensor& placement, int64_t num_rows, at::ScalarType rows_dtype, int64_t ep_size,
                           std::string group, std::string layer) {
  const Kernels& kernels = KernelsFor(grad.device());
  const at::Tensor send = kernels.spread_rows(grad, weights, order, rows_dtype);
  at::Tensor grad_rows = Exchange(counts, received, placement, ep_size, group, layer).Deliver(send);
  AUTOEP_CHECK(grad_rows.size(0) == num_rows, layer, "the gradient has ", grad_rows.size(0), " rows, and combine was given ",
               num_rows);
  if (!returned || !weights) return {grad_rows, grad.new_empty({0})};
  return {grad_rows, kernels.dot_rows(grad, *returned, order).to(weights->scalar_type())};
}

at::Tensor CombineMeta(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order, const at::Tensor&,
                       const at::Tensor&, const at::Tensor&, int64_t, std::string, std::string, int64_t) {
  return rows.new_empty_symint({order.sym_size(0), rows.sym_size(1)}, rows.options().dtype(OutType(rows, weights)));
}

TwoTensors CombineTrainMeta(const at::Tensor& rows, const OptionalTensor& weights, const at::Tensor& order,
                            const at::Tensor& counts, const at::Tensor& received, const at::Tensor& placement, int64_t ep_size,
                            std::string group, std::string layer, int64_t abi) {
  return {CombineMeta(rows, weights, order, counts, received, placement, ep_size, group, layer, abi),
          rows.new_empty_symint({order.sym_numel(), rows.sym_size(1)})};
}

TwoTensors CombineBackwardMeta(const at::Tensor& grad, const OptionalTensor& returned, const OptionalTensor& weights,
                               const at::Tensor& order, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               c10::SymInt num_rows, at::ScalarType rows_dtype, int64_t, std::string, std::string) {
  at::Tensor grad_rows = grad.new_empty_symint({num_rows, grad.sym_size(1)}, grad.options().dtype(rows_dtype));
  if (!returned || !weights) return {grad_rows, grad.new_empty({0})};
  return {grad_rows, weights->new_empty_symint(order.sym_sizes())};
}

class CombineFunction : public torch::autograd::Function<CombineFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, const OptionalTensor& weights,
                            const at::Tensor& order, const at::Tensor& counts, const at::Tensor& received,
                            const at::Tensor& placement, int64_t ep_size, std::string group, std::string layer, int64_t abi) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::combine", "").typed<decltype(Combine)>();
    static const auto train =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::combine_train", "").typed<decltype(CombineTrain)>();
    const at::AutoDispatchBelowADInplaceOrView guard;
    const bool weighted = weights.has_value() && weights->requires_grad();
    at::Tensor out;
    at::Tensor returned = weighted ? rows : at::Tensor();
    if (weighted && ep_size > 1) {
      std::tie(out, returned) = train.call(rows, weights, order, counts, received, placement, ep_size, group, layer, abi);
    } else {
      out = op.call(rows, weights, order, counts, received, placement, ep_size, group, layer, abi);
    }
    ctx->save_for_backward({returned, weights.value_or(at::Tensor()), order, counts, received, placement});
    ctx->saved_data["num_rows"] = rows.sym_size(0);
    ctx->saved_data["rows_dtype"] = rows.scalar_type();
    ctx->saved_data["ep_size"] = ep_size;
    ctx->saved_data["group"] = std::move(group);
    ctx->saved_data["layer"] = std::move(layer);
    return out;
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::combine_backward", "").typed<decltype(CombineBackwardMeta)>();
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
  library.impl("combine_train", &CombineTrain);
  library.impl("combine_backward", &CombineBackward);
}

TORCH_LIBRARY_IMPL(autoep, CUDA, library) {
  library.impl("combine", &Combine);
  library.impl("combine_train", &CombineTrain);
  library.impl("combine_backward", &CombineBackward);
}

TORCH_LIBRARY_IMPL(autoep, Meta, library) {
  library.impl("combine", &CombineMeta);
  library.impl("combine_train", &CombineTrainMeta);
  library.impl("combine_backward", &CombineBackwardMeta);
}

TORCH_LIBRARY_IMPL(autoep, Autograd, library) {
  library.impl("combine", &CombineAutograd);
  library.impl("combine_train", torch::autograd::autogradNotImplementedFallback());
  library.impl("combine_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The op moe: as a device's own kernels have it, else put together from the other ops' kernels or, with a gradient,
// from those ops.
#include "plugin/ops/moe/moe.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <utility>

#include "plugin/contract/schemas.h"
#include "plugin/ops/checks.h"
#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/recorder.h"

namespace autoep::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalDtype = std::optional<at::ScalarType>;

void Record(const at::Tensor& ids, const OptionalTensor& weights, const std::string& layer) {
  if (!Recorder::Active()) return;
  Recorder::Add({RecordedCall::Op::kDispatch, layer, ids.clone(), {}, ids.numel()});
  Recorder::Add({RecordedCall::Op::kExperts, layer, {}, {}, ids.numel()});
  if (weights) Recorder::Add({RecordedCall::Op::kCombine, layer, {}, weights->clone(), ids.numel()});
}

// The dtype in which combine gives its sum.
at::ScalarType SumDtype(const at::Tensor& x, const OptionalTensor& weights) {
  return weights ? c10::promoteTypes(x.scalar_type(), weights->scalar_type()) : x.scalar_type();
}

at::Tensor PutTogether(MoeCall call, const OptionalTensor& scale) {
  const at::Tensor x = call.experts.rows;
  const Kernels& kernels = KernelsFor(x.device());
  const PairOrder pairs = kernels.order_pairs(call.ids, call.placement, 1, call.layer);
  const int64_t experts = call.placement.size(0);
  AUTOEP_CHECK(!pairs.bad_id, call.layer, "ids holds ", *pairs.bad_id, ", and there are ", experts, " experts, 0 to ", experts - 1);
  call.experts.rows = kernels.spread_rows(x, scale, pairs.order, pairs.order.numel(), x.scalar_type());
  call.experts.offsets = pairs.ends;
  const at::Tensor rows = kernels.forward_experts(call.experts, false).out;
  return kernels.sum_rows(rows, call.weights, pairs.order, SumDtype(rows, call.weights)).to(call.dtype);
}

MoeCall CheckedMoe(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
                   const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down,
                   const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, const std::string& activation,
                   at::ArrayRef<double> args, OptionalDtype dtype, std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  CheckInt64(ids, 2, "ids", layer);
  CheckPerChoice(weights, ids, "weights", layer);
  CheckPerChoice(scale, ids, "scale", layer);
  CheckPlacement(placement, 1, layer);
  MoeCall call{CheckedExperts(x, gate_up, down, gate_up_bias, down_bias, activation, args, layer),
               ids.contiguous(),
               placement,
               weights,
               dtype.value_or(SumDtype(x, weights)),
               std::move(layer)};
  AUTOEP_CHECK(x.size(0) == ids.size(0), call.layer, "x has ", x.size(0), " tokens, and ids ", ids.size(0));
  AUTOEP_CHECK(x.device() == ids.device(), call.layer, "x is on ", x.device(), ", and ids on ", ids.device());
  AUTOEP_CHECK(placement.size(0) == gate_up.size(0), call.layer, "placement has ", placement.size(0), " experts, and the shard ",
               gate_up.size(0), ": moe is for one rank that holds them all");
  return call;
}

// The device's own kernels take the call.
bool OwnKernels(const MoeCall& call, const OptionalTensor& scale) {
  const Kernels& kernels = KernelsFor(call.experts.rows.device());
  return kernels.moe_runs != nullptr && !scale && kernels.moe_runs(call);
}

at::Tensor Moe(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
               const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
               const OptionalTensor& down_bias, std::string activation, at::ArrayRef<double> args, OptionalDtype dtype,
               std::string layer, int64_t abi) {
  MoeCall call = CheckedMoe(x, ids, weights, scale, placement, gate_up, down, gate_up_bias, down_bias, activation, args, dtype,
                            std::move(layer), abi);
  Record(ids, weights, call.layer);
  if (OwnKernels(call, scale)) return KernelsFor(x.device()).forward_moe(call, nullptr);
  return PutTogether(std::move(call), scale);
}

at::Tensor MoeMeta(const at::Tensor& x, const at::Tensor&, const OptionalTensor& weights, const OptionalTensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&, std::string,
                   at::ArrayRef<double>, OptionalDtype dtype, std::string, int64_t) {
  return x.new_empty_symint(x.sym_sizes(), x.options().dtype(dtype.value_or(SumDtype(x, weights))));
}

// The types of dispatch, experts and combine, as their schemas have them.
using DispatchType = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                                            const OptionalTensor&,
                                                                                            const at::Tensor&, int64_t, std::string,
                                                                                            std::string, int64_t);
using ExpertsType = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                               const OptionalTensor&, std::string, at::ArrayRef<double>, std::string, int64_t);
using CombineType = at::Tensor(const at::Tensor&, const OptionalTensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const at::Tensor&, int64_t, std::string, std::string, int64_t);

template <typename Type>
c10::TypedOperatorHandle<Type> Find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Type>();
}

class MoeFunction : public torch::autograd::Function<MoeFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const OptionalTensor& weights,
                            const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
                            const OptionalTensor& down_bias, const MoeCall& call, std::string activation,
                            std::vector<double> args) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Record(call.ids, weights, call.layer);
    MoeSaved saved;
    at::Tensor out = KernelsFor(x.device()).forward_moe(call, &saved);
    ctx->save_for_backward({x, weights.value_or(at::Tensor()), gate_up, down, gate_up_bias.value_or(at::Tensor()),
                            down_bias.value_or(at::Tensor()), call.ids, call.placement, saved.hidden, saved.order, saved.sorted,
                            saved.ends});
    ctx->saved_data["dtype"] = call.dtype;
    ctx->saved_data["layer"] = call.layer;
    ctx->saved_data["activation"] = std::move(activation);
    ctx->saved_data["args"] = std::move(args);
    return out;
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Variables saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    const MoeCall call =
        CheckedMoe(saved[0], saved[6], optional(saved[1]), std::nullopt, saved[7], saved[2], saved[3], optional(saved[4]),
                   optional(saved[5]), ctx->saved_data["activation"].toStringRef(), ctx->saved_data["args"].toDoubleVector(),
                   ctx->saved_data["dtype"].toScalarType(), ctx->saved_data["layer"].toStringRef(), contract::kOpAbi);
    std::array<bool, 6> needs;
    // An operand that is not there has no place among the inputs.
    for (size_t i = 0, input = 0; i < needs.size(); ++i) needs[i] = saved[i].defined() && ctx->needs_input_grad(input++);
    const MoeGrads own =
        KernelsFor(saved[0].device()).backward_moe(call, {saved[8], saved[9], saved[10], saved[11]}, grads[0], needs);
    return {own.x, own.weights, own.gate_up, own.down, own.gate_up_bias, own.down_bias, {}, {}, {}};
  }
};

bool NeedsGrad(std::initializer_list<OptionalTensor> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const OptionalTensor& tensor : tensors) {
    if (tensor.has_value() && tensor->requires_grad()) return true;
  }
  return false;
}

at::Tensor MoeAutograd(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
                       const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down,
                       const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, std::string activation,
                       at::ArrayRef<double> args, OptionalDtype dtype, std::string layer, int64_t abi) {
  if (!NeedsGrad({x, weights, scale, gate_up, down, gate_up_bias, down_bias})) {
    static const auto op = Find<decltype(Moe)>("autoep::moe");
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(x, ids, weights, scale, placement, gate_up, down, gate_up_bias, down_bias, std::move(activation), args, dtype,
                   std::move(layer), abi);
  }
  // A compiler's fake tensors see the three ops, which have fakes of their own.
  if (x.is_cuda() && !x.unsafeGetTensorImpl()->is_python_dispatch()) {
    const MoeCall call =
        CheckedMoe(x, ids, weights, scale, placement, gate_up, down, gate_up_bias, down_bias, activation, args, dtype, layer, abi);
    if (OwnKernels(call, scale)) {
      return MoeFunction::apply(x, weights, gate_up, down, gate_up_bias, down_bias, call, std::move(activation), args.vec());
    }
  }
  static const auto dispatch = Find<DispatchType>("autoep::dispatch");
  static const auto experts = Find<ExpertsType>("autoep::experts");
  static const auto combine = Find<CombineType>("autoep::combine");
  const auto [rows, offsets, counts, order, received] = dispatch.call(x, ids, scale, placement, 1, "", layer, abi);
  const at::Tensor done =
      experts.call(rows, offsets, gate_up, down, gate_up_bias, down_bias, std::move(activation), args, layer, abi);
  const at::Tensor sum = combine.call(done, weights, order, counts, received, placement, 1, "", layer, abi);
  return dtype ? sum.to(*dtype) : sum;
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CPU, library) { library.impl("moe", &Moe); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { library.impl("moe", &Moe); }
TORCH_LIBRARY_IMPL(autoep, Meta, library) { library.impl("moe", &MoeMeta); }
TORCH_LIBRARY_IMPL(autoep, Autograd, library) { library.impl("moe", &MoeAutograd); }

}  // namespace autoep::ops

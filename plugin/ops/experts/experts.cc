// SPDX-License-Identifier: Apache-2.0
// The op experts and its gradient: checks and autograd. Kernels are per device.
#include "plugin/ops/experts/experts.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/recorder.h"

namespace autoep::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using FiveTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

contract::ActivationSpec FindActivation(const std::string& name, at::ArrayRef<double> args, const std::string& layer) {
  const auto spec = contract::ParseActivation(name);
  AUTOEP_CHECK(spec.has_value(), layer, "the activation '", name, "' is not known to this libautoep.so");
  const size_t expected = spec->kind == contract::Activation::kClampedSwiglu ? 2 : 0;
  AUTOEP_CHECK(args.size() == expected, layer, "the activation '", name, "' takes ", expected, " numbers, and ", args.size(),
               " are given");
  return *spec;
}

void CheckWeight(const at::Tensor& weight, at::IntArrayRef shape, const at::Tensor& rows, const char* name,
                 const std::string& layer) {
  AUTOEP_CHECK(weight.sizes() == shape, layer, name, " is ", weight.sizes(), ", and ", shape, " is expected");
  AUTOEP_CHECK(weight.scalar_type() == rows.scalar_type(), layer, name, " is ", weight.scalar_type(), ", and the rows are ",
               rows.scalar_type(), ": they must have one dtype");
  AUTOEP_CHECK(weight.device() == rows.device(), layer, name, " is on ", weight.device(), ", and the rows on ", rows.device());
}

OptionalTensor CheckedBias(const OptionalTensor& bias, at::IntArrayRef shape, const at::Tensor& rows, const char* name,
                           const std::string& layer) {
  if (!bias) return std::nullopt;
  CheckWeight(*bias, shape, rows, name, layer);
  return bias->contiguous();
}

void CheckAttached(const at::Tensor& weight, const std::string& layer) {
  AUTOEP_CHECK(weight.sym_size(0) != 0, layer,
               "no shard attached: load the directory with autoep.load() in Python or autoep::Load() in C++, ",
               "which put this rank's experts in place");
}

}  // namespace

ExpertsCall CheckedExperts(const at::Tensor& rows, const at::Tensor& gate_up, const at::Tensor& down,
                           const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, const std::string& activation,
                           at::ArrayRef<double> args, const std::string& layer) {
  CheckAttached(gate_up, layer);
  CheckAttached(down, layer);
  CheckFloat(rows, 2, "rows", layer);
  CheckFloat(gate_up, 3, "gate_up", layer);
  CheckFloat(down, 3, "down", layer);
  const contract::ActivationSpec spec = FindActivation(activation, args, layer);
  const int64_t experts = gate_up.size(0);
  const int64_t inner = down.size(2);
  const int64_t up = spec.gated ? 2 * inner : inner;
  CheckWeight(gate_up, {experts, up, rows.size(1)}, rows, spec.gated ? "gate_up" : "up", layer);
  CheckWeight(down, {experts, rows.size(1), inner}, rows, "down", layer);
  ExpertsCall call{rows.contiguous(),
                   at::Tensor(),
                   gate_up.contiguous(),
                   down.contiguous(),
                   CheckedBias(gate_up_bias, {experts, up}, rows, "gate_up_bias", layer),
                   CheckedBias(down_bias, {experts, rows.size(1)}, rows, "down_bias", layer),
                   spec};
  if (!args.empty()) {
    call.alpha = args[0];
    call.limit = args[1];
  }
  return call;
}

namespace {

ExpertsCall CheckExperts(const at::Tensor& rows, const at::Tensor& offsets, const at::Tensor& gate_up, const at::Tensor& down,
                         const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, const std::string& activation,
                         at::ArrayRef<double> args, const std::string& layer) {
  ExpertsCall call = CheckedExperts(rows, gate_up, down, gate_up_bias, down_bias, activation, args, layer);
  AUTOEP_CHECK(offsets.scalar_type() == at::kInt && offsets.dim() == 1, layer, "offsets must be int32 with one dimension");
  AUTOEP_CHECK(offsets.size(0) == gate_up.size(0), layer, "the placement gives this rank ", offsets.size(0),
               " experts, and the shard holds ", gate_up.size(0), ": load the shard of this rank, made for this number of ranks");
  AUTOEP_CHECK(offsets.device() == rows.device(), layer, "offsets are on ", offsets.device(), ", and the rows on ", rows.device());
  call.offsets = offsets.contiguous();
  return call;
}

void Record(const at::Tensor& rows, const std::string& layer) {
  if (Recorder::Active()) Recorder::Add({RecordedCall::Op::kExperts, layer, {}, {}, rows.size(0)});
}

at::Tensor Experts(const at::Tensor& rows, const at::Tensor& offsets, const at::Tensor& gate_up, const at::Tensor& down,
                   const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, std::string activation,
                   at::ArrayRef<double> args, std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  const ExpertsCall call = CheckExperts(rows, offsets, gate_up, down, gate_up_bias, down_bias, activation, args, layer);
  Record(rows, layer);
  return KernelsFor(rows.device()).forward_experts(call, false).out;
}

std::tuple<at::Tensor, at::Tensor> ExpertsTrain(const at::Tensor& rows, const at::Tensor& offsets, const at::Tensor& gate_up,
                                                const at::Tensor& down, const OptionalTensor& gate_up_bias,
                                                const OptionalTensor& down_bias, std::string activation, at::ArrayRef<double> args,
                                                std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  const ExpertsCall call = CheckExperts(rows, offsets, gate_up, down, gate_up_bias, down_bias, activation, args, layer);
  Record(rows, layer);
  ExpertsOut result = KernelsFor(rows.device()).forward_experts(call, true);
  return {result.out, result.hidden};
}

FiveTensors ExpertsBackward(const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& rows, const at::Tensor& offsets,
                            const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
                            const OptionalTensor& down_bias, std::string activation, at::ArrayRef<double> args, std::string layer,
                            std::array<bool, 5> needs) {
  const ExpertsCall call = CheckExperts(rows, offsets, gate_up, down, gate_up_bias, down_bias, activation, args, layer);
  needs[3] = needs[3] && gate_up_bias;
  needs[4] = needs[4] && down_bias;
  ExpertsGrads grads = KernelsFor(rows.device()).backward_experts(call, grad.contiguous(), hidden.contiguous(), needs);
  const auto given = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor : rows.new_empty({0}); };
  return {given(grads.rows), given(grads.gate_up), given(grads.down), given(grads.gate_up_bias), given(grads.down_bias)};
}

at::Tensor ExpertsMeta(const at::Tensor& rows, const at::Tensor&, const at::Tensor& gate_up, const at::Tensor&,
                       const OptionalTensor&, const OptionalTensor&, std::string, at::ArrayRef<double>, std::string layer,
                       int64_t) {
  CheckAttached(gate_up, layer);
  return rows.new_empty_symint(rows.sym_sizes());
}

std::tuple<at::Tensor, at::Tensor> ExpertsTrainMeta(const at::Tensor& rows, const at::Tensor&, const at::Tensor& gate_up,
                                                    const at::Tensor&, const OptionalTensor&, const OptionalTensor&, std::string,
                                                    at::ArrayRef<double>, std::string layer, int64_t) {
  CheckAttached(gate_up, layer);
  return {rows.new_empty_symint(rows.sym_sizes()), rows.new_empty_symint({rows.sym_size(0), gate_up.sym_size(1)})};
}

FiveTensors ExpertsBackwardMeta(const at::Tensor&, const at::Tensor&, const at::Tensor& rows, const at::Tensor&,
                                const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
                                const OptionalTensor& down_bias, std::string, at::ArrayRef<double>, std::string,
                                std::array<bool, 5> needs) {
  const auto like = [&](const at::Tensor& tensor, bool needed) {
    return needed && tensor.defined() ? tensor.new_empty_symint(tensor.sym_sizes()) : rows.new_empty({0});
  };
  return {like(rows, needs[0]), like(gate_up, needs[1]), like(down, needs[2]), like(gate_up_bias.value_or(at::Tensor()), needs[3]),
          like(down_bias.value_or(at::Tensor()), needs[4])};
}

class ExpertsFunction : public torch::autograd::Function<ExpertsFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& offsets,
                            const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
                            const OptionalTensor& down_bias, std::string activation, std::vector<double> args, std::string layer,
                            int64_t abi) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::experts_train", "").typed<decltype(ExpertsTrain)>();
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, hidden] = op.call(rows, offsets, gate_up, down, gate_up_bias, down_bias, activation, args, layer, abi);
    ctx->save_for_backward(
        {hidden, rows, offsets, gate_up, down, gate_up_bias.value_or(at::Tensor()), down_bias.value_or(at::Tensor())});
    ctx->saved_data["activation"] = std::move(activation);
    ctx->saved_data["args"] = std::move(args);
    ctx->saved_data["layer"] = std::move(layer);
    return out;
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("autoep::experts_backward", "").typed<decltype(ExpertsBackward)>();
    const Variables saved = ctx->get_saved_variables();
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    // A bias that is not there has no place among the inputs.
    const size_t down_bias_place = saved[5].defined() ? 5 : 4;
    const std::array<bool, 5> needs = {ctx->needs_input_grad(0), ctx->needs_input_grad(2), ctx->needs_input_grad(3),
                                       saved[5].defined() && ctx->needs_input_grad(4),
                                       saved[6].defined() && ctx->needs_input_grad(down_bias_place)};
    auto [rows, gate_up, down, gate_up_bias, down_bias] =
        op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], optional(saved[5]), optional(saved[6]),
                ctx->saved_data["activation"].toStringRef(), ctx->saved_data["args"].toDoubleVector(),
                ctx->saved_data["layer"].toStringRef(), needs);
    const auto wanted = [&](const at::Tensor& tensor, size_t i) { return needs[i] ? tensor : at::Tensor(); };
    return {
        wanted(rows, 0), {}, wanted(gate_up, 1), wanted(down, 2), wanted(gate_up_bias, 3), wanted(down_bias, 4), {}, {}, {}, {}};
  }
};

bool NeedsGrad(const OptionalTensor& tensor) { return tensor.has_value() && tensor->requires_grad(); }

at::Tensor ExpertsAutograd(const at::Tensor& rows, const at::Tensor& offsets, const at::Tensor& gate_up, const at::Tensor& down,
                           const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, std::string activation,
                           at::ArrayRef<double> args, std::string layer, int64_t abi) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::experts", "").typed<decltype(Experts)>();
  const bool needs_grad = at::GradMode::is_enabled() && (rows.requires_grad() || gate_up.requires_grad() || down.requires_grad() ||
                                                         NeedsGrad(gate_up_bias) || NeedsGrad(down_bias));
  if (needs_grad) {
    return ExpertsFunction::apply(rows, offsets, gate_up, down, gate_up_bias, down_bias, std::move(activation), args.vec(),
                                  std::move(layer), abi);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(rows, offsets, gate_up, down, gate_up_bias, down_bias, std::move(activation), args, std::move(layer), abi);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CPU, library) {
  library.impl("experts", &Experts);
  library.impl("experts_train", &ExpertsTrain);
  library.impl("experts_backward", &ExpertsBackward);
}

TORCH_LIBRARY_IMPL(autoep, CUDA, library) {
  library.impl("experts", &Experts);
  library.impl("experts_train", &ExpertsTrain);
  library.impl("experts_backward", &ExpertsBackward);
}

TORCH_LIBRARY_IMPL(autoep, Meta, library) {
  library.impl("experts", &ExpertsMeta);
  library.impl("experts_train", &ExpertsTrainMeta);
  library.impl("experts_backward", &ExpertsBackwardMeta);
}

TORCH_LIBRARY_IMPL(autoep, Autograd, library) {
  library.impl("experts", &ExpertsAutograd);
  library.impl("experts_train", torch::autograd::autogradNotImplementedFallback());
  library.impl("experts_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace autoep::ops

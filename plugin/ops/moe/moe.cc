// SPDX-License-Identifier: Apache-2.0
// The op moe, for one rank and for several: checks, and autograd. What it computes is in one_rank.cc and ranks.cc.
#include "plugin/ops/moe/moe.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <memory>
#include <utility>

#include "plugin/ops/checks.h"
#include "plugin/ops/exchange.h"
#include "plugin/ops/kernels.h"
#include "plugin/ops/moe/ranks.h"
#include "plugin/ops/recorder.h"

namespace autoep::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using OptionalDtype = std::optional<at::ScalarType>;

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
c10::TypedOperatorHandle<Type> Find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Type>();
}

// The op's arguments, as the schema of several ranks has them.
struct Arguments {
  const at::Tensor &x, &ids;
  const OptionalTensor &weights, &scale;
  const at::Tensor &placement, &gate_up, &down;
  const OptionalTensor &gate_up_bias, &down_bias;
  const std::string& activation;
  at::ArrayRef<double> activation_args;
  OptionalDtype dtype;
  int64_t ep_size;
  const std::string &group, &layer;
  int64_t abi;

  MoeCall Checked() const {
    CheckAbi(abi, layer);
    CheckInt64(ids, 2, "ids", layer);
    CheckPerChoice(weights, ids, "weights", layer);
    CheckPerChoice(scale, ids, "scale", layer);
    CheckPlacement(placement, ep_size, layer);
    ExpertsCall experts = CheckedExperts(x, gate_up, down, gate_up_bias, down_bias, activation, activation_args, layer);
    AUTOEP_CHECK(x.size(0) == ids.size(0), layer, "x has ", x.size(0), " tokens, and ids ", ids.size(0));
    AUTOEP_CHECK(x.device() == ids.device(), layer, "x is on ", x.device(), ", and ids on ", ids.device());
    AUTOEP_CHECK(placement.size(0) == gate_up.size(0) * ep_size, layer, "placement has ", placement.size(0), " experts on ",
                 ep_size, " rank(s), and the shard ", gate_up.size(0));
    const at::ScalarType sum = dtype.value_or(SumType(x, weights));
    return {std::move(experts), ids.contiguous(), placement, weights, scale, sum, layer, ids.numel(), {}};
  }

  at::Tensor ByThreeOps() const {
    static const auto dispatch = Find<DispatchType>("autoep::dispatch");
    static const auto experts = Find<ExpertsType>("autoep::experts");
    static const auto combine = Find<CombineType>("autoep::combine");
    const auto [rows, offsets, counts, order, received] = dispatch.call(x, ids, scale, placement, ep_size, group, layer, abi);
    const at::Tensor done =
        experts.call(rows, offsets, gate_up, down, gate_up_bias, down_bias, activation, activation_args, layer, abi);
    const at::Tensor sum = combine.call(done, weights, order, counts, received, placement, ep_size, group, layer, abi);
    return dtype ? sum.to(*dtype) : sum;
  }

  bool NeedsGrad() const {
    if (!at::GradMode::is_enabled()) return false;
    for (const at::Tensor* tensor : {&x, &gate_up, &down}) {
      if (tensor->requires_grad()) return true;
    }
    for (const OptionalTensor* tensor : {&weights, &scale, &gate_up_bias, &down_bias}) {
      if (*tensor && (*tensor)->requires_grad()) return true;
    }
    return false;
  }
};

void Record(const at::Tensor& ids, const OptionalTensor& weights, int64_t num_rows, const std::string& layer) {
  if (!Recorder::Active()) return;
  Recorder::Add({RecordedCall::Op::kDispatch, layer, ids.clone(), {}, ids.numel()});
  Recorder::Add({RecordedCall::Op::kExperts, layer, {}, {}, num_rows});
  if (weights) Recorder::Add({RecordedCall::Op::kCombine, layer, {}, weights->clone(), ids.numel()});
}

struct Forwarded {
  at::Tensor out;
  MoeCall here;  // what this rank's experts computed
  MoeSaved saved;
  Journey journey;  // where there are several ranks
};

Forwarded Forward(const Arguments& arguments, bool keep) {
  Forwarded done{{}, arguments.Checked(), {}, {}};
  MoeSaved* saved = keep ? &done.saved : nullptr;
  if (arguments.ep_size == 1) {
    done.out = ForwardMoe(done.here, saved);
  } else {
    done.out =
        ForwardRanks(done.here, SumType(arguments.x, arguments.weights), arguments.ep_size, arguments.group, saved, done.journey);
  }
  Record(arguments.ids, arguments.weights, done.here.num_rows, arguments.layer);
  return done;
}

at::Tensor Moe(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
               const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
               const OptionalTensor& down_bias, std::string activation, at::ArrayRef<double> args, OptionalDtype dtype,
               int64_t ep_size, std::string group, std::string layer, int64_t abi) {
  const Arguments arguments{x,         ids,        weights, scale, placement, gate_up, down,  gate_up_bias,
                            down_bias, activation, args,    dtype, ep_size,   group,   layer, abi};
  if (ep_size > 1 && scale) return arguments.ByThreeOps();
  return Forward(arguments, false).out;
}

at::Tensor MoeMeta(const at::Tensor& x, const at::Tensor&, const OptionalTensor& weights, const OptionalTensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&, std::string,
                   at::ArrayRef<double>, OptionalDtype dtype, int64_t, std::string, std::string, int64_t) {
  return x.new_empty_symint(x.sym_sizes(), x.options().dtype(dtype.value_or(SumType(x, weights))));
}

class MoeFunction : public torch::autograd::Function<MoeFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const OptionalTensor& weights,
                            const at::Tensor& gate_up, const at::Tensor& down, const OptionalTensor& gate_up_bias,
                            const OptionalTensor& down_bias, const Arguments& arguments) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Forwarded done = Forward(arguments, true);
    const MoeCall& here = done.here;
    ctx->save_for_backward({here.experts.rows, here.weights.value_or(at::Tensor()), gate_up, down,
                            gate_up_bias.value_or(at::Tensor()), down_bias.value_or(at::Tensor()), here.ids, here.placement,
                            done.saved.hidden, done.saved.order, done.saved.ends, done.saved.sorted, done.saved.out,
                            done.journey.order, done.journey.received});
    // A hook may hand out the same tensor again, or keep it.
    ctx->saved_data["hidden_is_own"] = !at::SavedTensorDefaultHooks::get_hooks().has_value();
    ctx->saved_data["dtype"] = here.dtype;
    ctx->saved_data["weights_dtype"] = weights ? weights->scalar_type() : x.scalar_type();
    ctx->saved_data["num_rows"] = here.num_rows;
    ctx->saved_data["ep_size"] = arguments.ep_size;
    ctx->saved_data["group"] = arguments.group;
    ctx->saved_data["layer"] = arguments.layer;
    ctx->saved_data["activation"] = arguments.activation;
    ctx->saved_data["args"] = arguments.activation_args.vec();
    return done.out;
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Variables saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    const std::string layer = data["layer"].toStringRef();
    const MoeCall here{CheckedExperts(saved[0], saved[2], saved[3], optional(saved[4]), optional(saved[5]),
                                      data["activation"].toStringRef(), data["args"].toDoubleVector(), layer),
                       saved[6],
                       saved[7],
                       optional(saved[1]),
                       std::nullopt,
                       data["dtype"].toScalarType(),
                       layer,
                       data["num_rows"].toInt(),
                       {}};
    const bool again = torch::autograd::get_current_graph_task_keep_graph();
    const MoeSaved kept{saved[8], saved[9], saved[10], saved[11], saved[12], data["hidden_is_own"].toBool() && !again};
    std::array<bool, 6> needs;
    // An operand that is not there has no place among the inputs.
    for (size_t i = 0, input = 0; i < needs.size(); ++i) needs[i] = saved[i].defined() && ctx->needs_input_grad(input++);
    const at::Tensor grad = grads[0].to(c10::promoteTypes(grads[0].scalar_type(), saved[0].scalar_type()));
    MoeGrads own = data["ep_size"].toInt() == 1 ? BackwardMoe(here, kept, grad, needs)
                                                : BackwardRanks(here, kept, grad, needs, data["ep_size"].toInt(),
                                                                data["group"].toStringRef(), {saved[13], saved[14]});
    if (own.weights.defined()) own.weights = own.weights.to(data["weights_dtype"].toScalarType());
    Variables result{own.x, own.weights, own.gate_up, own.down, own.gate_up_bias, own.down_bias, {}};
    if (at::GradMode::is_enabled()) RefuseSecondDerivative(result, torch::autograd::collect_next_edges(saved, grads));
    return result;
  }

 private:
  // As constants they would be wrong in silence.
  static void RefuseSecondDerivative(Variables& grads, torch::autograd::edge_list inputs) {
    const auto refusal = std::make_shared<torch::autograd::NotImplemented>("autoep::moe's backward", std::move(inputs));
    for (at::Tensor& grad : grads) {
      if (!grad.defined()) continue;
      grad = grad.detach();
      torch::autograd::set_history(grad, refusal);
    }
  }
};

at::Tensor MoeAutograd(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
                       const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down,
                       const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, std::string activation,
                       at::ArrayRef<double> args, OptionalDtype dtype, int64_t ep_size, std::string group, std::string layer,
                       int64_t abi) {
  const Arguments arguments{x,         ids,        weights, scale, placement, gate_up, down,  gate_up_bias,
                            down_bias, activation, args,    dtype, ep_size,   group,   layer, abi};
  if (!arguments.NeedsGrad()) {
    static const auto op = Find<decltype(Moe)>("autoep::moe", "ranks");
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(x, ids, weights, scale, placement, gate_up, down, gate_up_bias, down_bias, std::move(activation), args, dtype,
                   ep_size, std::move(group), std::move(layer), abi);
  }
  // Of several ranks they cannot: how many rows come is no size of moe's own result.
  AUTOEP_CHECK(ep_size == 1 || !x.unsafeGetTensorImpl()->is_python_dispatch(), layer,
               "moe of several ranks has no gradient under a compiler: convert with --moe=ops, or compile without gradients");
  // Who watches sees the three ops, which have fakes of their own.
  if (scale || Watched(x)) return arguments.ByThreeOps();
  return MoeFunction::apply(x, weights, gate_up, down, gate_up_bias, down_bias, arguments);
}

// The same on one rank.
template <auto kRanks>
at::Tensor OnOneRank(const at::Tensor& x, const at::Tensor& ids, const OptionalTensor& weights, const OptionalTensor& scale,
                     const at::Tensor& placement, const at::Tensor& gate_up, const at::Tensor& down,
                     const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias, std::string activation,
                     at::ArrayRef<double> args, OptionalDtype dtype, std::string layer, int64_t abi) {
  return kRanks(x, ids, weights, scale, placement, gate_up, down, gate_up_bias, down_bias, std::move(activation), args, dtype, 1,
                "", std::move(layer), abi);
}

template <auto kRanks>
void Implement(torch::Library& library) {
  library.impl("moe", &OnOneRank<kRanks>);
  library.impl("moe.ranks", kRanks);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CPU, library) { Implement<&Moe>(library); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { Implement<&Moe>(library); }
TORCH_LIBRARY_IMPL(autoep, Meta, library) { Implement<&MoeMeta>(library); }
TORCH_LIBRARY_IMPL(autoep, Autograd, library) { Implement<&MoeAutograd>(library); }

}  // namespace autoep::ops

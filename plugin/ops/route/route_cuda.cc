// SPDX-License-Identifier: Apache-2.0
// route on CUDA: one launch, and one for its gradient, where the kernels' limits hold; else torch's ops.
#include "plugin/ops/route/route_cuda.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <utility>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/route/route.h"
#include "plugin/ops/route/route_call_cuda.h"

namespace autoep::ops {
namespace {

using OptionalDtype = std::optional<at::ScalarType>;
using OptionalTensor = std::optional<at::Tensor>;
using Routed = std::tuple<at::Tensor, at::Tensor>;

bool Suits(const at::Tensor& logits, const OptionalTensor& bias, const RouteOptions& options) {
  return KernelSuits(logits.scalar_type(), logits.device(), logits.size(-1), bias, options);
}

at::Tensor Contiguous(const OptionalTensor& tensor) { return tensor ? tensor->contiguous() : at::Tensor(); }

// logits and bias contiguous.
cuda::RouteCall CallFor(const at::Tensor& logits, const at::Tensor& bias, const RouteOptions& options, const Dtypes& dtypes) {
  const int64_t experts = logits.size(-1);
  cuda::RouteCall call = CallOf(logits.numel() / experts, experts, bias, options, dtypes);
  call.logits = cuda::RowsOf(logits);
  return call;
}

Routed RunKernel(const at::Tensor& given, const OptionalTensor& given_bias, const RouteOptions& options) {
  const c10::cuda::CUDAGuard guard(given.device());
  const at::Tensor logits = given.contiguous();
  const at::Tensor bias = Contiguous(given_bias);
  const Dtypes dtypes = DtypesOf(logits.scalar_type(), given_bias, options);
  cuda::RouteCall call = CallFor(logits, bias, options, dtypes);
  const Routed outputs = MakeOutputs(logits.sizes(), logits.options().dtype(dtypes.out), call);
  cuda::RouteTokens(call, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return outputs;
}

at::Tensor RunBackward(const at::Tensor& given, const OptionalTensor& given_bias, const at::Tensor& ids, const at::Tensor& grad,
                       const RouteOptions& options) {
  const c10::cuda::CUDAGuard guard(given.device());
  const at::Tensor logits = given.contiguous();
  const at::Tensor bias = Contiguous(given_bias);
  const at::Tensor weights_grad = grad.contiguous();
  at::Tensor out = at::empty(logits.sizes(), logits.options());
  cuda::RouteCall call = CallFor(logits, bias, options, DtypesOf(logits.scalar_type(), given_bias, options));
  call.ids = ids.mutable_data_ptr<int64_t>();
  cuda::RouteTokensBackward(call, cuda::RowsOf(weights_grad), cuda::RowsOf(out), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

struct KeptOptions : torch::CustomClassHolder {
  explicit KeptOptions(RouteOptions given) : options(std::move(given)) {}
  RouteOptions options;
};

class RouteFunction : public torch::autograd::Function<RouteFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static Variables forward(torch::autograd::AutogradContext* ctx, const at::Tensor& logits, const OptionalTensor& bias,
                           const RouteOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [weights, ids] = RunKernel(logits, bias, options);
    ctx->save_for_backward({logits, bias.value_or(at::Tensor()), ids});
    ctx->mark_non_differentiable({ids});
    ctx->saved_data["options"] = c10::IValue::make_capsule(c10::make_intrusive<KeptOptions>(options));
    return {weights, ids};
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    const Variables saved = ctx->get_saved_variables();
    const OptionalTensor bias = saved[1].defined() ? OptionalTensor(saved[1]) : std::nullopt;
    const auto kept = c10::static_intrusive_pointer_cast<KeptOptions>(ctx->saved_data["options"].toCapsule());
    Variables result(3);
    if (at::GradMode::is_enabled()) {  // somebody will differentiate this
      const at::Tensor weights = std::get<0>(RouteWithTorch(saved[0], bias, kept->options));
      result[0] = torch::autograd::grad({weights}, {saved[0]}, {grads[0]}, std::nullopt, /*create_graph=*/true).front();
    } else {
      result[0] = RunBackward(saved[0], bias, saved[2], grads[0], kept->options);
    }
    return result;
  }
};

Routed RouteCuda(const at::Tensor& logits, const OptionalTensor& bias, OptionalDtype score_dtype, std::string scores,
                 int64_t num_groups, int64_t top_groups, std::string group_score, double group_fill, int64_t top_k, bool sorted,
                 bool weigh_choice, OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale,
                 OptionalDtype dtype, std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  const RouteOptions options = OptionsOf(score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill,
                                         top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype);
  CheckRoute(logits.sizes(), logits.scalar_type(), bias, options, layer);
  return Suits(logits, bias, options) ? RunKernel(logits, bias, options) : RouteWithTorch(logits, bias, options);
}

// Hands on to the kernel through the dispatcher, where a fake tensor leaves the way before it has data to read.
Routed RouteAutograd(const at::Tensor& logits, const OptionalTensor& bias, OptionalDtype score_dtype, std::string scores,
                     int64_t num_groups, int64_t top_groups, std::string group_score, double group_fill, int64_t top_k, bool sorted,
                     bool weigh_choice, OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale,
                     OptionalDtype dtype, std::string layer, int64_t abi) {
  const bool bias_grad = bias && bias->requires_grad();
  if (at::GradMode::is_enabled() && (logits.requires_grad() || bias_grad)) {
    CheckAbi(abi, layer);
    const RouteOptions options =
        OptionsOf(score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill, top_k, sorted,
                  weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype);
    CheckRoute(logits.sizes(), logits.scalar_type(), bias, options, layer);
    const bool kernel = !bias_grad && !(weigh_choice && num_groups > 1) && !Watched(logits) && Suits(logits, bias, options);
    if (!kernel) return RouteWithTorch(logits, bias, options);
    const auto routed = RouteFunction::apply(logits, bias, options);
    return {routed[0], routed[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return RouteOp().call(logits, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill,
                        top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype, std::move(layer),
                        abi);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, AutogradCUDA, library) { library.impl("route", &RouteAutograd); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { library.impl("route", &RouteCuda); }

}  // namespace autoep::ops

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

namespace autoep::ops {
namespace {

using OptionalDtype = std::optional<at::ScalarType>;
using OptionalTensor = std::optional<at::Tensor>;
using Routed = std::tuple<at::Tensor, at::Tensor>;

// What torch's ops would give each intermediate.
struct Dtypes {
  at::ScalarType score, choice, weight, out;
};

Dtypes DtypesOf(const at::Tensor& logits, const OptionalTensor& bias, const RouteOptions& options) {
  const at::ScalarType score = options.score_dtype.value_or(logits.scalar_type());
  const at::ScalarType choice = bias ? c10::promoteTypes(score, bias->scalar_type()) : score;
  const at::ScalarType weight = options.weight_dtype.value_or(options.weigh_choice ? choice : score);
  return {score, choice, weight, options.dtype.value_or(weight)};
}

bool KernelSuits(const at::Tensor& logits, const OptionalTensor& bias, const RouteOptions& options, const Dtypes& dtypes) {
  const auto narrow = [](at::ScalarType type) { return type == at::kFloat || type == at::kHalf || type == at::kBFloat16; };
  return narrow(logits.scalar_type()) && (!bias || narrow(bias->scalar_type())) && narrow(dtypes.score) && narrow(dtypes.weight) &&
         narrow(dtypes.out) && logits.size(-1) <= cuda::kMostRoutedExperts && options.num_groups <= cuda::kMostGroups &&
         options.top_k <= cuda::kMostChoices;
}

cuda::Renorm RenormOf(const std::string& name) {
  if (name == "none") return cuda::Renorm::kNone;
  if (name == "sum") return cuda::Renorm::kSum;
  return name == "clamp" ? cuda::Renorm::kClamp : cuda::Renorm::kSoftmax;
}

cuda::Scores ScoresOf(const std::string& name) {
  if (name == "softmax") return cuda::Scores::kSoftmax;
  return name == "sigmoid" ? cuda::Scores::kSigmoid : cuda::Scores::kNone;
}

// logits and bias contiguous; weights and ids are left out.
cuda::RouteCall CallOf(const at::Tensor& logits, const at::Tensor& bias, const RouteOptions& options, const Dtypes& dtypes) {
  cuda::RouteCall call{};
  call.logits = cuda::RowsOf(logits);
  call.bias = cuda::RowsOrNone(bias);
  call.experts = logits.size(-1);
  call.tokens = logits.numel() / call.experts;
  call.score_type = cuda::RowTypeOf(dtypes.score);
  call.choice_type = cuda::RowTypeOf(dtypes.choice);
  call.weight_type = cuda::RowTypeOf(dtypes.weight);
  call.scores = ScoresOf(options.scores);
  call.num_groups = static_cast<int>(options.num_groups);
  call.top_groups = static_cast<int>(options.top_groups);
  call.group_max = options.group_score == "max";
  call.group_fill = static_cast<float>(options.group_fill);
  call.top_k = static_cast<int>(options.top_k);
  call.weigh_choice = options.weigh_choice;
  call.renorm = RenormOf(options.renorm);
  call.renorm_min = static_cast<float>(options.renorm_min);
  call.scale = static_cast<float>(options.scale);
  return call;
}

at::Tensor Contiguous(const OptionalTensor& tensor) { return tensor ? tensor->contiguous() : at::Tensor(); }

Routed RunKernel(const at::Tensor& given, const OptionalTensor& given_bias, const RouteOptions& options, const Dtypes& dtypes) {
  const c10::cuda::CUDAGuard guard(given.device());
  const at::Tensor logits = given.contiguous();
  const at::Tensor bias = Contiguous(given_bias);
  std::vector<int64_t> shape = logits.sizes().vec();
  shape.back() = options.top_k;
  at::Tensor weights = at::empty(shape, logits.options().dtype(dtypes.out));
  at::Tensor ids = at::empty(shape, logits.options().dtype(at::kLong));
  cuda::RouteCall call = CallOf(logits, bias, options, dtypes);
  call.weights = cuda::RowsOf(weights);
  call.ids = ids.mutable_data_ptr<int64_t>();
  cuda::RouteTokens(call, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weights, ids};
}

at::Tensor RunBackward(const at::Tensor& given, const OptionalTensor& given_bias, const at::Tensor& ids, const at::Tensor& grad,
                       const RouteOptions& options) {
  const c10::cuda::CUDAGuard guard(given.device());
  const at::Tensor logits = given.contiguous();
  const at::Tensor bias = Contiguous(given_bias);
  const at::Tensor weights_grad = grad.contiguous();
  at::Tensor out = at::empty(logits.sizes(), logits.options());
  cuda::RouteCall call = CallOf(logits, bias, options, DtypesOf(logits, given_bias, options));
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
    auto [weights, ids] = RunKernel(logits, bias, options, DtypesOf(logits, bias, options));
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
  CheckRoute(logits, bias, options, layer);
  const Dtypes dtypes = DtypesOf(logits, bias, options);
  return KernelSuits(logits, bias, options, dtypes) ? RunKernel(logits, bias, options, dtypes)
                                                    : RouteWithTorch(logits, bias, options);
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
    CheckRoute(logits, bias, options, layer);
    const bool kernel = !bias_grad && !(weigh_choice && num_groups > 1) && !Watched(logits) &&
                        KernelSuits(logits, bias, options, DtypesOf(logits, bias, options));
    if (!kernel) return RouteWithTorch(logits, bias, options);
    const auto routed = RouteFunction::apply(logits, bias, options);
    return {routed[0], routed[1]};
  }
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::route", "").typed<decltype(RouteCuda)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(logits, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill, top_k,
                 sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype, std::move(layer), abi);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, AutogradCUDA, library) { library.impl("route", &RouteAutograd); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { library.impl("route", &RouteCuda); }

}  // namespace autoep::ops

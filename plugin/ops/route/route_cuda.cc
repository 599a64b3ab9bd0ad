// SPDX-License-Identifier: Apache-2.0
// route on CUDA: one launch, where nothing needs a gradient and the kernel's limits hold; else torch's ops.
#include "plugin/ops/route/route_cuda.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <utility>

#include "plugin/ops/checks.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/route/route.h"

namespace autoep::ops {
namespace {

using OptionalDtype = std::optional<at::ScalarType>;
using Routed = std::tuple<at::Tensor, at::Tensor>;

// What torch's ops would give each intermediate.
struct Dtypes {
  at::ScalarType score, choice, weight, out;
};

Dtypes DtypesOf(const at::Tensor& logits, const std::optional<at::Tensor>& bias, const RouteOptions& options) {
  const at::ScalarType score = options.score_dtype.value_or(logits.scalar_type());
  const at::ScalarType choice = bias ? c10::promoteTypes(score, bias->scalar_type()) : score;
  const at::ScalarType weight = options.weight_dtype.value_or(options.weigh_choice ? choice : score);
  return {score, choice, weight, options.dtype.value_or(weight)};
}

bool KernelSuits(const at::Tensor& logits, const std::optional<at::Tensor>& bias, const RouteOptions& options,
                 const Dtypes& dtypes) {
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

Routed RunKernel(const at::Tensor& given, const std::optional<at::Tensor>& given_bias, const RouteOptions& options,
                 const Dtypes& dtypes) {
  const c10::cuda::CUDAGuard guard(given.device());
  const at::Tensor logits = given.contiguous();
  const at::Tensor bias = given_bias ? given_bias->contiguous() : at::Tensor();
  std::vector<int64_t> shape = logits.sizes().vec();
  const int64_t experts = shape.back();
  shape.back() = options.top_k;
  at::Tensor weights = at::empty(shape, logits.options().dtype(dtypes.out));
  at::Tensor ids = at::empty(shape, logits.options().dtype(at::kLong));
  cuda::RouteCall call{};
  call.logits = cuda::RowsOf(logits);
  call.bias = cuda::RowsOrNone(bias);
  call.tokens = logits.numel() / experts;
  call.experts = experts;
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
  call.weights = cuda::RowsOf(weights);
  call.ids = ids.mutable_data_ptr<int64_t>();
  cuda::RouteTokens(call, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weights, ids};
}

Routed RouteCuda(const at::Tensor& logits, const std::optional<at::Tensor>& bias, OptionalDtype score_dtype, std::string scores,
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
Routed RouteAutograd(const at::Tensor& logits, const std::optional<at::Tensor>& bias, OptionalDtype score_dtype, std::string scores,
                     int64_t num_groups, int64_t top_groups, std::string group_score, double group_fill, int64_t top_k, bool sorted,
                     bool weigh_choice, OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale,
                     OptionalDtype dtype, std::string layer, int64_t abi) {
  if (at::GradMode::is_enabled() && (logits.requires_grad() || (bias && bias->requires_grad()))) {
    return Route(logits, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill, top_k,
                 sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype, std::move(layer), abi);
  }
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::route", "").typed<decltype(RouteCuda)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(logits, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill, top_k,
                 sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype, std::move(layer), abi);
}

}  // namespace

// With a gradient it is torch's ops, which differentiate themselves.
TORCH_LIBRARY_IMPL(autoep, AutogradCUDA, library) { library.impl("route", &RouteAutograd); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { library.impl("route", &RouteCuda); }

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The op route. Its one kernel is a composition, so autograd, fakes and every device follow from torch's ops; a device's own
// kernel may be registered beside it.
#include "plugin/ops/route/route.h"

#include <ATen/ops/add.h>
#include <ATen/ops/bitwise_not.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/div.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/max.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <utility>

#include "plugin/contract/schemas.h"
#include "plugin/ops/checks.h"

namespace autoep::ops {
namespace {

using OptionalDtype = std::optional<at::ScalarType>;

at::Tensor Cast(const at::Tensor& tensor, OptionalDtype dtype) { return dtype ? tensor.to(*dtype) : tensor; }

at::Tensor Score(const at::Tensor& logits, const std::string& scores) {
  if (scores == "softmax") return at::softmax(logits, -1);
  return scores == "sigmoid" ? at::sigmoid(logits) : logits;
}

// choice [T, E] with everything outside each token's best groups set to the fill.
at::Tensor LimitToGroups(const at::Tensor& choice, const RouteOptions& options) {
  const int64_t size = choice.size(-1) / options.num_groups;
  const at::Tensor grouped = choice.view({-1, options.num_groups, size});
  const at::Tensor group_scores =
      options.group_score == "max" ? std::get<0>(at::max(grouped, -1)) : std::get<0>(at::topk(grouped, 2, -1)).sum(-1);
  const at::Tensor best = std::get<1>(at::topk(group_scores, options.top_groups, -1, /*largest=*/true, /*sorted=*/false));
  const at::Tensor kept = at::zeros_like(group_scores).scatter_(1, best, 1);
  const at::Tensor mask = kept.unsqueeze(-1).expand({-1, options.num_groups, size}).reshape({-1, choice.size(-1)});
  return choice.masked_fill(at::bitwise_not(mask.to(at::kBool)), options.group_fill);
}

at::Tensor Renormalise(const at::Tensor& weights, const RouteOptions& options) {
  if (options.renorm == "none") return weights;
  if (options.renorm == "softmax") return at::softmax(weights, -1);
  at::Tensor sum = weights.sum(-1, /*keepdim=*/true);
  if (options.renorm == "clamp") sum = at::clamp(sum, options.renorm_min);
  if (options.renorm == "sum" && options.renorm_min != 0) sum = at::add(sum, options.renorm_min);
  return at::div(weights, sum);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> Route(const at::Tensor& logits, const std::optional<at::Tensor>& bias, OptionalDtype score_dtype,
                                         std::string scores, int64_t num_groups, int64_t top_groups, std::string group_score,
                                         double group_fill, int64_t top_k, bool sorted, bool weigh_choice,
                                         OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale,
                                         OptionalDtype dtype, std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  const RouteOptions options = OptionsOf(score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill,
                                         top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype);
  CheckRoute(logits.sizes(), logits.scalar_type(), bias, options, layer);
  return RouteWithTorch(logits, bias, options);
}

RouteOptions OptionsOf(OptionalDtype score_dtype, std::string scores, int64_t num_groups, int64_t top_groups,
                       std::string group_score, double group_fill, int64_t top_k, bool sorted, bool weigh_choice,
                       OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale, OptionalDtype dtype) {
  return {.score_dtype = score_dtype,
          .scores = std::move(scores),
          .num_groups = num_groups,
          .top_groups = top_groups,
          .group_score = std::move(group_score),
          .group_fill = group_fill,
          .top_k = top_k,
          .sorted = sorted,
          .weigh_choice = weigh_choice,
          .weight_dtype = weight_dtype,
          .renorm = std::move(renorm),
          .renorm_min = renorm_min,
          .scale = scale,
          .dtype = dtype};
}

void CheckRoute(at::IntArrayRef logits, at::ScalarType dtype, const std::optional<at::Tensor>& bias, const RouteOptions& options,
                const std::string& layer) {
  const auto one_of = [&](const char* name, const std::string& value, std::initializer_list<const char*> known) {
    for (const char* word : known) {
      if (value == word) return;
    }
    AUTOEP_CHECK(false, layer, "route does not know ", name, " '", value, "'");
  };
  AUTOEP_CHECK(at::isFloatingType(dtype) && !logits.empty(), layer, "route's logits are ", dtype, " ", logits,
               ", and [.., E] of floats are expected");
  const int64_t experts = logits.back();
  one_of("scores", options.scores, {"softmax", "sigmoid", "none"});
  one_of("group_score", options.group_score, {"max", "top2_sum"});
  one_of("renorm", options.renorm, {"none", "sum", "clamp", "softmax"});
  AUTOEP_CHECK(options.top_k >= 1 && options.top_k <= experts, layer, "route chooses ", options.top_k, " of ", experts, " experts");
  const bool row = bias && bias->dim() == 2 && logits.size() == 2 && bias->size(0) == 1;
  AUTOEP_CHECK(!bias || ((row || bias->dim() == 1) && bias->size(-1) == experts), layer,
               "route's bias must hold one number for each of ", experts, " experts");
  if (options.num_groups == 1) return;
  AUTOEP_CHECK(options.num_groups > 1 && experts % options.num_groups == 0 && logits.size() == 2 && options.top_groups >= 1 &&
                   options.top_groups <= options.num_groups && (options.group_score == "max" || experts / options.num_groups >= 2),
               layer, "route chooses ", options.top_groups, " of ", options.num_groups, " groups, by ", options.group_score,
               ", and its logits are ", logits);
}

const c10::TypedOperatorHandle<decltype(Route)>& RouteOp() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::route", "").typed<decltype(Route)>();
  return op;
}

std::tuple<at::Tensor, at::Tensor> RouteLinear(const at::Tensor& x, const at::Tensor& gate,
                                               const std::optional<at::Tensor>& gate_bias, const std::optional<at::Tensor>& bias,
                                               OptionalDtype logits_dtype, OptionalDtype score_dtype, std::string scores,
                                               int64_t num_groups, int64_t top_groups, std::string group_score, double group_fill,
                                               int64_t top_k, bool sorted, bool weigh_choice, OptionalDtype weight_dtype,
                                               std::string renorm, double renorm_min, double scale, OptionalDtype dtype,
                                               std::string layer, int64_t abi) {
  const auto wide = gate_bias ? std::optional(Cast(*gate_bias, logits_dtype)) : std::nullopt;
  const at::Tensor logits = at::linear(Cast(x, logits_dtype), Cast(gate, logits_dtype), wide);
  return RouteOp().call(logits, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill,
                        top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype, std::move(layer),
                        abi);
}

std::tuple<at::Tensor, at::Tensor> RouteWithTorch(const at::Tensor& logits, const std::optional<at::Tensor>& bias,
                                                  const RouteOptions& options) {
  const at::Tensor scores = Score(Cast(logits, options.score_dtype), options.scores);
  at::Tensor choice = bias ? at::add(scores, *bias) : scores;
  if (options.num_groups > 1) choice = LimitToGroups(choice, options);
  const auto [values, ids] = at::topk(choice, options.top_k, -1, /*largest=*/true, options.sorted);
  at::Tensor weights = options.weigh_choice ? values : at::gather(scores, -1, ids);
  weights = Renormalise(Cast(weights, options.weight_dtype), options);
  if (options.scale != 1) weights = at::mul(weights, options.scale);
  return {Cast(weights, options.dtype), ids};
}

TORCH_LIBRARY_IMPL(autoep, CompositeImplicitAutograd, library) {
  library.impl("route", &Route);
  library.impl("route.linear", &RouteLinear);
}

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// route.linear on CUDA: few tokens are routed by one launch, the product inside, where nobody asks for gradients; else logits of
// fp32 are made from operands of 16 bits as they are.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <utility>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/route/route.h"
#include "plugin/ops/route/route_call_cuda.h"
#include "plugin/ops/route/route_cuda.h"
#include "plugin/ops/route/wide_linear.h"

namespace autoep::ops {
namespace {

using OptionalDtype = std::optional<at::ScalarType>;
using OptionalTensor = std::optional<at::Tensor>;
using Routed = std::tuple<at::Tensor, at::Tensor>;

// None where the kernel's limits do not hold. `logits` is the dtype of the product.
std::optional<Routed> TryKernel(const LinearOperands& product, const OptionalTensor& given_bias, const RouteOptions& options,
                                at::ScalarType logits, const std::string& layer) {
  const auto& [x, gate, gate_bias] = product;
  const bool rounds = logits == x.scalar_type();
  if (!product.AreNarrow() || !(rounds || logits == at::kFloat) ||
      !KernelSuits(logits, x.device(), gate.size(0), given_bias, options))
    return std::nullopt;
  std::vector<int64_t> shape = x.sizes().vec();
  const int64_t hidden = std::exchange(shape.back(), gate.size(0));
  CheckRoute(shape, logits, given_bias, options, layer);
  const at::Tensor bias = given_bias ? given_bias->contiguous() : at::Tensor();
  const Dtypes dtypes = DtypesOf(logits, given_bias, options);
  cuda::RouteCall call = CallOf(hidden == 0 ? 0 : x.numel() / hidden, gate.size(0), bias, options, dtypes);
  const cuda::RouteProduct inner{
      x.const_data_ptr(), gate.const_data_ptr(), cuda::DataOrNull(gate_bias), hidden, cuda::RowTypeOf(x.scalar_type()), rounds};
  if (!cuda::RouteLinearCan(call, inner)) return std::nullopt;
  const c10::cuda::CUDAGuard guard(x.device());
  const Routed outputs = MakeOutputs(shape, x.options().dtype(dtypes.out), call);
  C10_CUDA_CHECK(cuda::RouteTokens(call, inner, c10::cuda::getCurrentCUDAStream()));
  return outputs;
}

Routed RouteLinearCuda(const at::Tensor& x, const at::Tensor& gate, const OptionalTensor& gate_bias, const OptionalTensor& bias,
                       OptionalDtype logits_dtype, OptionalDtype score_dtype, std::string scores, int64_t num_groups,
                       int64_t top_groups, std::string group_score, double group_fill, int64_t top_k, bool sorted,
                       bool weigh_choice, OptionalDtype weight_dtype, std::string renorm, double renorm_min, double scale,
                       OptionalDtype dtype, std::string layer, int64_t abi) {
  CheckAbi(abi, layer);
  const LinearOperands product{x, gate, gate_bias};
  const at::ScalarType logits = logits_dtype.value_or(x.scalar_type());
  if (!product.GiveGradients() && !(bias && bias->requires_grad()) && !Watched(x)) {
    const RouteOptions options = OptionsOf(score_dtype, scores, num_groups, top_groups, group_score, group_fill, top_k, sorted,
                                           weigh_choice, weight_dtype, renorm, renorm_min, scale, dtype);
    if (const auto routed = TryKernel(product, bias, options, logits, layer)) return *routed;
  }
  if (logits == at::kFloat && !Watched(x)) {
    if (const auto wide = TryWideLinear(product)) {
      return RouteOp().call(*wide, bias, score_dtype, std::move(scores), num_groups, top_groups, std::move(group_score), group_fill,
                            top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min, scale, dtype,
                            std::move(layer), abi);
    }
  }
  return RouteLinear(x, gate, gate_bias, bias, logits_dtype, score_dtype, std::move(scores), num_groups, top_groups,
                     std::move(group_score), group_fill, top_k, sorted, weigh_choice, weight_dtype, std::move(renorm), renorm_min,
                     scale, dtype, std::move(layer), abi);
}

}  // namespace

// What has gradients is recorded from the first of these on.
TORCH_LIBRARY_IMPL(autoep, AutogradCUDA, library) { library.impl("route.linear", &RouteLinearCuda); }
TORCH_LIBRARY_IMPL(autoep, CUDA, library) { library.impl("route.linear", &RouteLinearCuda); }

}  // namespace autoep::ops

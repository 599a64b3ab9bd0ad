// SPDX-License-Identifier: Apache-2.0
// route: from router logits to expert ids and weights. The op's arguments as a struct, and its arithmetic in torch's own ops.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace autoep::ops {

// The arguments of autoep::route; contract/schemas.h says what they mean.
struct RouteOptions {
  std::optional<at::ScalarType> score_dtype;
  std::string scores;
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  std::string group_score;
  double group_fill = 0;
  int64_t top_k = 1;
  bool sorted = true;
  bool weigh_choice = false;
  std::optional<at::ScalarType> weight_dtype;
  std::string renorm;
  double renorm_min = 0;
  double scale = 1;
  std::optional<at::ScalarType> dtype;
};

// The op by torch's ops, checked: what every device without a kernel of its own runs.
std::tuple<at::Tensor, at::Tensor> Route(const at::Tensor& logits, const std::optional<at::Tensor>& bias,
                                         std::optional<at::ScalarType> score_dtype, std::string scores, int64_t num_groups,
                                         int64_t top_groups, std::string group_score, double group_fill, int64_t top_k, bool sorted,
                                         bool weigh_choice, std::optional<at::ScalarType> weight_dtype, std::string renorm,
                                         double renorm_min, double scale, std::optional<at::ScalarType> dtype, std::string layer,
                                         int64_t abi);

// The op, by the kernel of its logits' device.
const c10::TypedOperatorHandle<decltype(Route)>& RouteOp();

// route.linear by torch's linear and route.
std::tuple<at::Tensor, at::Tensor> RouteLinear(const at::Tensor& x, const at::Tensor& gate,
                                               const std::optional<at::Tensor>& gate_bias, const std::optional<at::Tensor>& bias,
                                               std::optional<at::ScalarType> logits_dtype,
                                               std::optional<at::ScalarType> score_dtype, std::string scores, int64_t num_groups,
                                               int64_t top_groups, std::string group_score, double group_fill, int64_t top_k,
                                               bool sorted, bool weigh_choice, std::optional<at::ScalarType> weight_dtype,
                                               std::string renorm, double renorm_min, double scale,
                                               std::optional<at::ScalarType> dtype, std::string layer, int64_t abi);

// The op's arguments, in the schema's order.
RouteOptions OptionsOf(std::optional<at::ScalarType> score_dtype, std::string scores, int64_t num_groups, int64_t top_groups,
                       std::string group_score, double group_fill, int64_t top_k, bool sorted, bool weigh_choice,
                       std::optional<at::ScalarType> weight_dtype, std::string renorm, double renorm_min, double scale,
                       std::optional<at::ScalarType> dtype);

// Throws, in a sentence that names the layer, where the options do not suit logits [.., E] of this dtype.
void CheckRoute(at::IntArrayRef logits, at::ScalarType dtype, const std::optional<at::Tensor>& bias, const RouteOptions& options,
                const std::string& layer);

// {weights, ids}, differentiable in logits. The same torch ops in the same order and dtypes as in the routers that the op
// replaces, so that every bit is theirs.
std::tuple<at::Tensor, at::Tensor> RouteWithTorch(const at::Tensor& logits, const std::optional<at::Tensor>& bias,
                                                  const RouteOptions& options);

}  // namespace autoep::ops

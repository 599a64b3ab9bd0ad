// SPDX-License-Identifier: Apache-2.0
// From route's tensors and options to the arguments of its kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/route/route.h"
#include "plugin/ops/route/route_cuda.h"

namespace autoep::ops {

// What torch's ops would give each intermediate.
struct Dtypes {
  at::ScalarType score, choice, weight, out;
};

inline Dtypes DtypesOf(at::ScalarType logits, const std::optional<at::Tensor>& bias, const RouteOptions& options) {
  const at::ScalarType score = options.score_dtype.value_or(logits);
  const at::ScalarType choice = bias ? c10::promoteTypes(score, bias->scalar_type()) : score;
  const at::ScalarType weight = options.weight_dtype.value_or(options.weigh_choice ? choice : score);
  return {score, choice, weight, options.dtype.value_or(weight)};
}

// Whether the kernels' limits hold for logits of this dtype on this device.
inline bool KernelSuits(at::ScalarType logits, const at::Device& device, int64_t experts, const std::optional<at::Tensor>& bias,
                        const RouteOptions& options) {
  const auto narrow = [](at::ScalarType type) { return type == at::kFloat || type == at::kHalf || type == at::kBFloat16; };
  const Dtypes dtypes = DtypesOf(logits, bias, options);
  return narrow(logits) && (!bias || (narrow(bias->scalar_type()) && bias->device() == device)) && narrow(dtypes.score) &&
         narrow(dtypes.weight) && narrow(dtypes.out) && experts <= cuda::kMostRoutedExperts &&
         options.num_groups <= cuda::kMostGroups && options.top_k <= cuda::kMostChoices;
}

inline cuda::Renorm RenormOf(const std::string& name) {
  if (name == "none") return cuda::Renorm::kNone;
  if (name == "sum") return cuda::Renorm::kSum;
  return name == "clamp" ? cuda::Renorm::kClamp : cuda::Renorm::kSoftmax;
}

inline cuda::Scores ScoresOf(const std::string& name) {
  if (name == "softmax") return cuda::Scores::kSoftmax;
  return name == "sigmoid" ? cuda::Scores::kSigmoid : cuda::Scores::kNone;
}

// bias contiguous; logits, weights and ids are left out.
inline cuda::RouteCall CallOf(int64_t tokens, int64_t experts, const at::Tensor& bias, const RouteOptions& options,
                              const Dtypes& dtypes) {
  cuda::RouteCall call{};
  call.bias = cuda::RowsOrNone(bias);
  call.experts = experts;
  call.tokens = tokens;
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

// {weights, ids} for logits of this shape, where the call then writes.
inline std::tuple<at::Tensor, at::Tensor> MakeOutputs(at::IntArrayRef logits, const at::TensorOptions& weights,
                                                      cuda::RouteCall& call) {
  std::vector<int64_t> shape = logits.vec();
  shape.back() = call.top_k;
  const std::tuple<at::Tensor, at::Tensor> outputs(at::empty(shape, weights), at::empty(shape, weights.dtype(at::kLong)));
  call.weights = cuda::RowsOf(std::get<0>(outputs));
  call.ids = std::get<1>(outputs).mutable_data_ptr<int64_t>();
  return outputs;
}

}  // namespace autoep::ops

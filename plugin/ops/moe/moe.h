// SPDX-License-Identifier: Apache-2.0
// moe: dispatch, experts and combine of one rank as one op. Device kernels; the op is in moe.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>

#include "plugin/ops/experts/experts.h"

namespace autoep::ops {

// One call's operands, checked.
struct MoeCall {
  ExpertsCall experts;  // rows are the tokens x [T, H]; offsets are undefined
  at::Tensor ids;       // [T, k] int64, contiguous
  at::Tensor placement;
  std::optional<at::Tensor> weights;  // [T, k]
  at::ScalarType dtype;               // of the result: the weights', the experts', or the wider of both
  std::string layer;
};

// What the gradient needs. Neither the gathered rows nor the experts' output are kept.
struct MoeSaved {
  at::Tensor hidden;  // [T*k, 2I or I], before the activation
  at::Tensor order;   // [T*k] int32: position of each pair
  at::Tensor sorted;  // [T*k] int32: pair at each position
  at::Tensor ends;    // [E] int32: end of each slot's positions
};

// Undefined where not wanted.
struct MoeGrads {
  at::Tensor x, weights, gate_up, down, gate_up_bias, down_bias;
};

namespace cuda {
// True where the device and the operands suit the two below.
bool MoeRuns(const MoeCall& call);

// Returns [T, H], and what the gradient needs if `saved` is given.
at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved);

// grad [T, H], of any dtype. needs: in the order of MoeGrads.
MoeGrads BackwardMoe(const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs);
}  // namespace cuda

}  // namespace autoep::ops

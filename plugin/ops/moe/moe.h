// SPDX-License-Identifier: Apache-2.0
// moe: dispatch, experts and combine as one op. Device kernels; the op is in moe.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "plugin/ops/experts/experts.h"

namespace autoep::ops {

// One call's operands, checked.
struct MoeCall {
  ExpertsCall experts;   // rows are the tokens x [T, H]; offsets are undefined
  at::Tensor ids;        // [T, k] int64, contiguous
  at::Tensor placement;  // [E, 1, 2]; below, of one rank, where an expert that it does not hold has the slot past its last
  std::optional<at::Tensor> weights;  // [T, k]
  std::optional<at::Tensor> scale;    // [T, k], of the experts' input
  at::ScalarType dtype;               // of the result
  std::string layer;
  int64_t num_rows;  // choices of experts that are held
  at::Tensor out;    // [T, H] of dtype, for the result; or undefined
};

// What the gradient needs.
struct MoeSaved {
  at::Tensor hidden;  // [num_rows, 2I or I], before the activation
  at::Tensor order;   // [T, k] int64 or int32: position of each choice; num_rows and above: it has no row
  at::Tensor ends;    // [S] int32: end of each slot's positions
  // Of a device's own kernels, which keep neither the gathered rows nor the experts' output.
  at::Tensor sorted;  // [T*k] int32: choice at each position
  // Of the others.
  at::Tensor out;  // [num_rows, H]: the experts' output

  bool hidden_is_free = false;  // nobody else will read hidden: its gradient may take its place
};

// Undefined where not wanted.
struct MoeGrads {
  at::Tensor x, weights, gate_up, down, gate_up_bias, down_bias;
};

// On one rank: by the device's own kernels where it has some for the call, else by those of dispatch, experts and combine.
// Returns [T, H], and what the gradient needs if `saved` is given, which no call with a scale is.
at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved);
// grad [T, H], of x's dtype or a wider one. needs: in the order of MoeGrads; experts without rows get zeros. tokens_done is called
// once, with the gradients of x and weights, perhaps before those of the experts.
using TokensDone = std::function<void(const MoeGrads& grads)>;
MoeGrads BackwardMoe(
    const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
    const TokensDone& tokens_done = [](const MoeGrads&) {});

namespace cuda {
// True where the device and the operands suit the two below.
bool MoeRuns(const MoeCall& call);
at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved);
MoeGrads BackwardMoe(const MoeCall& call, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                     const TokensDone& tokens_done);
}  // namespace cuda

}  // namespace autoep::ops

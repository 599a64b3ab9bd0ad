// SPDX-License-Identifier: Apache-2.0
// moe on several ranks: tokens to the ranks of their experts, moe there, and the sums back.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string>

#include "plugin/ops/moe/moe.h"

namespace autoep::ops {

// The way that a call's tokens took, as dispatch returns it.
struct Journey {
  at::Tensor order;     // [T, 2k]
  at::Tensor received;  // [N, S + 2], on the CPU
};

// call: this rank's tokens, without a scale; afterwards, what its experts computed: the tokens that came to it. sum: the dtype in
// which combine would give the result. Returns [T, H]. Collective.
at::Tensor ForwardRanks(MoeCall& call, at::ScalarType sum, int64_t ep_size, const std::string& group, MoeSaved* saved,
                        Journey& journey);

// here: what ForwardRanks made of its call. grad [T, H]. The gradients of x and weights [T, k], fp32 or fp64, are this rank's
// tokens'; those of the experts sum over the ranks' tokens. Collective.
MoeGrads BackwardRanks(const MoeCall& here, const MoeSaved& saved, const at::Tensor& grad, const std::array<bool, 6>& needs,
                       int64_t ep_size, const std::string& group, const Journey& journey);

}  // namespace autoep::ops

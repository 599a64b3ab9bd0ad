// SPDX-License-Identifier: Apache-2.0
// experts by the grouped products of ops/grouped, which need Hopper and 16-bit rows.
#pragma once

#include "plugin/ops/experts/activation_cuda.h"
#include "plugin/ops/experts/experts.h"

namespace autoep::ops::cuda {

ActivationCall ActivationOf(const ExpertsCall& call);

// False where sizes, types or the device do not suit `rows` rows, and where the environment says AUTOEP_EXPERTS=torch.
bool HopperRuns(const ExpertsCall& call, int64_t rows);

// As ForwardExperts. With source [R] int32, row r of the experts' input is call.rows[source[r]].
ExpertsOut HopperForward(const ExpertsCall& call, const at::Tensor* source, bool keep_hidden);

// [R, columns]: rows [R, depth] times weight [S, depth, columns], R rows grouped by `ends`.
at::Tensor HopperAcross(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends);

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// Launchers of the activation kernels: raw device pointers and a stream, no LibTorch.
#pragma once

#include <cstdint>

#include "plugin/contract/activation.h"
#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {

struct ActivationCall {
  contract::ActivationSpec spec{contract::Activation::kSilu, false};
  double alpha = 1;  // kClampedSwiglu only
  double limit = 0;
};

// hidden [rows, 2I or I] -> out [rows, I] of the same type. Where bias [S, 2I or I] of that type is given, hidden becomes
// hidden + bias first; row r is of the first slot whose end (ends [S] int32) is above r.
void ActivateRows(const ActivationCall& call, Rows hidden, const void* bias, const int32_t* ends, int64_t slots, int64_t rows,
                  int64_t inner, void* out, cudaStream_t stream);

// For a row r of choice c = sorted[r]: factors[c] multiplies grad first. scaled may be grad itself.
struct ChoiceFactors {
  Rows factors;           // [choices], any type
  const int32_t* sorted;  // [rows]
  void* scaled;           // [rows, I], hidden's type: gets factor * activated
  void* dots;             // [choices], fp32 or, for double, fp64: gets the sum of grad * activated over the row; or null
};

// grad [rows, I], hidden as ActivateRows left it -> grad_hidden [rows, 2I or I], all of hidden's type; it may be hidden itself.
void ActivateRowsBackward(const ActivationCall& call, Rows hidden, const void* grad, int64_t rows, int64_t inner, void* grad_hidden,
                          const ChoiceFactors* choices, cudaStream_t stream);

// out[r] += bias[slot of r]: out [rows, columns], bias [S, columns].
void AddBias(Rows out, const void* bias, const int32_t* ends, int64_t slots, int64_t rows, int64_t columns, cudaStream_t stream);

// out [slots, columns], rows' type: the sums of each slot's rows [R, columns], times factors[sorted[r]] where factors are given;
// in an order that only their number decides.
void SumGroups(Rows rows, Rows factors, const int32_t* sorted, const int32_t* ends, int64_t slots, int64_t columns, void* out,
               cudaStream_t stream);

}  // namespace autoep::ops::cuda

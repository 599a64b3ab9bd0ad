// SPDX-License-Identifier: Apache-2.0
// experts by the grouped products of ops/grouped, which need Hopper and 16-bit rows.
#pragma once

#include "plugin/ops/experts/activation_cuda.h"
#include "plugin/ops/experts/experts.h"

namespace autoep::ops::cuda {

ActivationCall ActivationOf(const ExpertsCall& call);

// False where sizes, types or the device do not suit `rows` rows, and where the environment says AUTOEP_EXPERTS=torch.
bool HopperRuns(const ExpertsCall& call, int64_t rows);

// The rows of a forward pass, in device memory.
struct GroupedRows {
  int64_t count;
  const int32_t* ends;              // [S]
  const int32_t* source = nullptr;  // [count]: row r is call.rows[source[r]]; null: call.rows[r]
  // The grid before in the stream is SpreadRows', and has made the rows; all else is older.
  bool just_copied = false;
  int32_t* zeros = nullptr;  // [2] zeros for the products to count in; null: made where they are needed
};

// Where it writes, in device memory, aligned to 16 bytes.
struct ForwardBuffers {
  void* hidden;     // [count, 2I or I]; null where it is not wanted and the activation is gated
  void* activated;  // [count, I]
  void* out;        // [count, H]; may be call.rows, which only the first product reads
};

// call's offsets are not read.
void HopperForward(const ExpertsCall& call, const GroupedRows& rows, const ForwardBuffers& buffers);
// The same with buffers made for it, as ForwardExperts; out may be given.
ExpertsOut HopperForward(const ExpertsCall& call, const GroupedRows& rows, bool keep_hidden, const at::Tensor& out = {});

// [R, columns]: rows [R, depth] times weight [S, depth, columns], R rows grouped by `ends`.
at::Tensor HopperAcross(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends);

// out [S, m, n], rows of it out.stride(1) apart, or made here: left [R, m]^T times right [R, n] of each expert's rows, grouped by
// `ends`; zeros for an expert without rows.
void HopperWeightGrad(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends, const at::Tensor& out);
at::Tensor HopperWeightGrad(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends);

}  // namespace autoep::ops::cuda

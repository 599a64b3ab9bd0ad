// SPDX-License-Identifier: Apache-2.0
// Ops that no graph on disk holds: what autograd calls, so that compilers can trace through a backward pass, and one for tests. Not
// a contract.
//
// A gradient that is not wanted is an empty tensor.
#pragma once

namespace autoep::ops {

// grad_rows [R, H]. x is given where scale needs a gradient. Returns grad_x [T, H] in grad_rows' dtype, grad_scale [T, k].
inline constexpr char kDispatchBackward[] =
    "dispatch_backward(Tensor grad_rows, Tensor? x, Tensor? scale, Tensor order, Tensor counts, Tensor received, Tensor placement, "
    "int ep_size, str group, str layer) -> (Tensor grad_x, Tensor grad_scale)";

// experts, keeping what its gradient needs: hidden [R, 2I or I], before the activation.
inline constexpr char kExpertsTrain[] =
    "experts_train(Tensor rows, Tensor offsets, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "str activation, float[] activation_args, str layer, int abi) -> (Tensor out, Tensor hidden)";

// needs: which of the five gradients are wanted.
inline constexpr char kExpertsBackward[] =
    "experts_backward(Tensor grad, Tensor hidden, Tensor rows, Tensor offsets, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, float[] activation_args, str layer, bool[5] needs) -> "
    "(Tensor grad_rows, Tensor grad_gate_up, Tensor grad_down, Tensor grad_gate_up_bias, Tensor grad_down_bias)";

// grad [T, H]. rows, as combine was given them, where weights need a gradient. Returns grad_rows [num_rows, H] in rows_dtype,
// grad_weights [T, k].
inline constexpr char kCombineBackward[] =
    "combine_backward(Tensor grad, Tensor? rows, Tensor? weights, Tensor order, Tensor counts, Tensor received, "
    "Tensor placement, SymInt num_rows, ScalarType rows_dtype, int ep_size, str group, str layer) -> "
    "(Tensor grad_rows, Tensor grad_weights)";

// The transport alone, without a gradient. rows: this rank's, for each other rank in their order, then for itself. tokens [N, N]
// int64, on the CPU and the same on every rank: rows from each rank to each. Returns the rows that came, likewise by source.
inline constexpr char kAllToAll[] = "all_to_all(Tensor rows, Tensor tokens, str group) -> Tensor";

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// One matrix product an expert on Hopper: rows grouped by slot, each group times its slot's weight, with bias and activation
// applied before anything is written. Raw device pointers, no LibTorch. The host never learns the groups' sizes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>

#include "plugin/ops/experts/activation_cuda.h"

namespace autoep::ops::cuda {

// out[r] = act(weight[slot of r] x in[source of r] + bias[slot of r])
struct GroupedProduct {
  const void* in = nullptr;         // [in_rows, depth]
  const int32_t* source = nullptr;  // [rows]: row of `in` for each row of out; null: the same row
  const int32_t* ends = nullptr;    // [slots]: end of each slot's group of rows
  const void* weight = nullptr;     // [slots, width, depth]; width is 2 * columns where the activation is gated
  bool weight_across = false;       // weight is [slots, depth, columns] instead; then without activation and bias
  const void* bias = nullptr;       // [slots, width], or null
  void* hidden = nullptr;           // [rows, width]: gets the values before the activation; or null
  void* out = nullptr;              // [rows, columns]
  int64_t in_rows = 0, rows = 0, slots = 0, columns = 0, depth = 0;
  RowType type = RowType::kBFloat16;  // of every matrix; kBFloat16 or kHalf
  // A zero in device memory, or null: tiles are then taken from it in the order in which blocks come to them, so that those which
  // share rows and weights are worked on at one time, and find them in the L2 cache. Not with `source`.
  int32_t* next_tile = nullptr;
  std::optional<ActivationCall> activation;  // a gated one; none: out is the sum itself
  // The grid before this one in the stream wrote `in`, and all else is older: this grid may begin before that one has ended.
  bool only_in_is_fresh = false;

  bool gated() const { return activation && activation->spec.gated; }
  int64_t width() const { return gated() ? 2 * columns : columns; }
};

// So few rows for each slot that reading its weights is what takes time.
inline bool ReadsWeights(int64_t rows, int64_t slots) { return rows / slots <= 96; }
inline bool ReadsWeights(const GroupedProduct& product) { return ReadsWeights(product.rows, product.slots); }

// depth and columns are multiples of 8, slots are at most 1024, pointers are aligned to 16 bytes, the type is right, tiles can be
// counted. The device must have compute capability 9.0.
bool HopperCan(const GroupedProduct& product);

// Returns what failed, or null. HopperCan must hold.
const char* LaunchHopper(const GroupedProduct& product, int multiprocessors, cudaStream_t stream);

// The gradient of a grouped product's weight, or some columns of it: out[s][i][j] = sum over the rows r of slot s of
// left[r][i] * right[r][j]; zeros for a slot without rows.
struct GroupedGradient {
  const void* left = nullptr;     // [rows, out_rows]
  const void* right = nullptr;    // [rows, columns]
  const int32_t* ends = nullptr;  // [slots]
  void* out = nullptr;            // [slots, out_rows, columns], rows out_pitch values apart
  int64_t rows = 0, slots = 0, out_rows = 0, columns = 0, out_pitch = 0;
  RowType type = RowType::kBFloat16;  // of every matrix; kBFloat16 or kHalf
};

// out_rows, columns and out_pitch are multiples of 8, slots are at most 1024, pointers are aligned to 16 bytes, the type is right,
// rows of out can be counted. The device must have compute capability 9.0.
bool HopperCan(const GroupedGradient& product);

// Returns what failed, or null. HopperCan must hold.
const char* LaunchHopper(const GroupedGradient& product, int multiprocessors, cudaStream_t stream);

}  // namespace autoep::ops::cuda

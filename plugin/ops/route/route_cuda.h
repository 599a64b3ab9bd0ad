// SPDX-License-Identifier: Apache-2.0
// Launcher of the router kernel: raw device pointers and a stream, no LibTorch.
#pragma once

#include <cstdint>

#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {

enum class Scores { kSoftmax, kSigmoid, kNone };
enum class Renorm { kNone, kSum, kClamp, kSoftmax };

// autoep::route of contract/schemas.h, over rows of logits. Every intermediate is rounded to the dtype that it has there.
struct RouteCall {
  Rows logits;  // [tokens, experts]; not kDouble
  Rows bias;    // [experts], or null; not kDouble
  int64_t tokens, experts;
  RowType score_type, choice_type, weight_type;
  Scores scores;
  int num_groups, top_groups;
  bool group_max;  // else the sum of the two largest
  float group_fill;
  int top_k;
  bool weigh_choice;
  Renorm renorm;
  float renorm_min, scale;
  Rows weights;  // [tokens, top_k]; gets them
  int64_t* ids;  // [tokens, top_k]
};

inline constexpr int64_t kMostRoutedExperts = 1024;
inline constexpr int64_t kMostGroups = 32;
inline constexpr int64_t kMostChoices = 32;

// experts, num_groups and top_k are at most the limits above. Of equal choices the lower expert wins.
void RouteTokens(const RouteCall& call, cudaStream_t stream);

// The product that makes the logits: x times gate's rows, plus bias.
struct RouteProduct {
  const void* x;     // [tokens, hidden]
  const void* gate;  // [experts, hidden]
  const void* bias;  // [experts], or null
  int64_t hidden;
  RowType type;  // of all three
  bool rounds;   // logits to that type
};

// hidden is a multiple of 8, the matrices are aligned to 16 bytes, kHalf or kBFloat16, sizes within the limits above; the device
// has compute capability 9.0 or later.
bool RouteLinearCan(const RouteCall& call, const RouteProduct& product);

// The same with the product in the same launch; call.logits is not read. RouteLinearCan must hold.
cudaError_t RouteTokens(const RouteCall& call, const RouteProduct& product, cudaStream_t stream);

// From the gradient of weights [tokens, top_k] that of logits [tokens, experts], of logits' type. ids are read; weights are not.
// Not where both groups limit the choice and the choice is what weighs.
void RouteTokensBackward(const RouteCall& call, Rows weights_grad, Rows logits_grad, cudaStream_t stream);

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// Routes: the ids and weights [T, k] that the EP ops take, made from what a block's router hands over.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include "passes/detect/match.h"

namespace autoep {

struct Routes {
  torch::jit::Value* ids = nullptr;      // [T, k], in [0, num_experts)
  torch::jit::Value* weights = nullptr;  // [T, k]
  // Null without identity experts.
  torch::jit::Value* identity = nullptr;        // [T, 1], the weight of the token itself
  torch::jit::Value* without_expert = nullptr;  // [T, 1], true where a token chose identity experts alone
};

// `sum` of the experts' answers, with that of the token itself.
torch::jit::Value* AddIdentity(torch::jit::Graph& graph, const Routes& routes, torch::jit::Value* sum, torch::jit::Value* tokens);

// `value` as [rows, columns].
torch::jit::Value* AsColumns(torch::jit::Graph& graph, torch::jit::Value* value, int64_t columns);

// Inserts at the graph's insert point:
//   a table or mask: its k largest entries of each row, where the ids are not known: %_, %ids = aten::topk(aten::abs(%t), k)
//   weights_scale:   %weights * scale
//   identity experts: ids past num_experts get weight 0 at one of the token's others, and their weights are summed apart
Routes InsertRoutes(torch::jit::Graph& graph, const BlockMatch& match);

}  // namespace autoep

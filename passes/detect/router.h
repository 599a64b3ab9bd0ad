// SPDX-License-Identifier: Apache-2.0
// Router: the choice of experts by one aten::topk. The rewrite leaves it in the graph; all but ids and gate is description.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "passes/detect/flow.h"
#include "passes/detect/weight.h"

namespace autoep {

struct Router {
  torch::jit::Node* topk = nullptr;
  torch::jit::Value* ids = nullptr;    // topk's indices
  torch::jit::Node* gate = nullptr;    // the product that makes the logits
  torch::jit::Value* input = nullptr;  // what the gate reads
  int64_t num_experts = 0;             // logits a token
  at::ScalarType gate_dtype = at::kFloat;
  std::string gate_weight;
};

// All aten::topk of the top block, in order.
std::vector<torch::jit::Node*> FindTopks(torch::jit::Graph& graph);

// The router that ends in `topk`: the nearest product with a stored matrix above it makes its logits.
std::optional<Router> FindRouter(torch::jit::Node* topk, const WeightFinder& weights);

// MoeLayer::router: "scores" softmax, sigmoid or none, before the choice; "renorm" true, false, or softmax where the weights
// are a softmax over the chosen; "scale"; "bias" true where a stored tensor is added for the choice alone; "groups" true, then
// with "num_groups" and "top_groups", how many of them stay, where the graph holds the numbers.
std::map<std::string, std::string> DescribeRouter(const Router& router, const torch::jit::Value* weights);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Router: the choice of experts, by a top-k or by maxima. The rewrite leaves it in the graph; all but ids and gate is
// description.
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

// True for a node that may choose experts: aten::topk, aten::max of a dimension, aten::argmax.
bool MayChoose(const torch::jit::Node* node);

// True for the numbers of chosen experts: the indices of a top-k, of a maximum, or of several maxima side by side.
bool IsChoice(const torch::jit::Value* value);

struct Router {
  torch::jit::Node* choice = nullptr;  // aten::topk, max or argmax, or aten::cat of indices of such maxima
  torch::jit::Value* ids = nullptr;    // the indices; null: the choice is read off a table of weights or a mask
  torch::jit::Node* gate = nullptr;    // the product that makes the logits
  torch::jit::Value* input = nullptr;  // what the gate reads
  int64_t num_experts = 0;             // that it may choose, as far as is known: as many as there are logits
  int64_t logits = 0;                  // a token; some may be there for something else than the choice
  at::ScalarType gate_dtype = at::kFloat;
  std::string gate_weight;
};

// The routers of the top block, grouped by gate: those with ids, top-ks first, and then one without. The nearest product with
// a stored matrix above a choice makes its logits; choices without one are left out.
std::vector<std::vector<Router>> FindRouters(torch::jit::Graph& graph, const WeightFinder& weights);

// MoeLayer::router: "scores" softmax, sigmoid or none, before the choice; "renorm" true, false, or softmax where the weights
// are a softmax over the chosen; "scale"; "bias" true where a stored tensor is added for the choice alone; "groups" true, then
// with "num_groups" and "top_groups", how many of them stay, where the graph holds the numbers; "capacity" where a count of each
// expert's tokens is compared with a constant: that; then "second_choices" "last" where those are counted behind all first ones.
// `choice` may be null.
std::map<std::string, std::string> DescribeRouter(const Router& router, const torch::jit::Value* choice,
                                                  const torch::jit::Value* weights);

// The comparisons of a count with a capacity that are on the way from the gate to the choice and its weights.
std::vector<torch::jit::Node*> FindCapacityTests(const Router& router, const torch::jit::Value* choice,
                                                 const torch::jit::Value* weights);

}  // namespace autoep

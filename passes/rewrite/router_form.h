// SPDX-License-Identifier: Apache-2.0
// RouterForm: the router around a top-k, proved node by node to be one that autoep::route computes.
#pragma once

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <optional>
#include <string>

namespace autoep {

// The arguments of autoep::route as contract/schemas.h names them; dtypes are c10::ScalarType's numbers.
struct RouterForm {
  torch::jit::Value* logits = nullptr;  // [T, E]
  torch::jit::Value* bias = nullptr;    // null for none
  std::optional<int64_t> score_dtype;
  std::string scores = "none";
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  std::string group_score = "max";
  double group_fill = 0;
  torch::jit::Value* top_k = nullptr;  // int: a constant, or an attribute of a scripted module
  bool sorted = true;
  bool weigh_choice = false;
  std::optional<int64_t> weight_dtype;
  std::string renorm = "none";
  double renorm_min = 0;
  double scale = 1;
  std::optional<int64_t> dtype;

  torch::jit::Value* ids = nullptr;      // [T, k]
  torch::jit::Value* weights = nullptr;  // [T, k], as far towards the experts as the form reaches

  std::string Summary() const;  // "sigmoid + bias, 4 of 8 groups by top2_sum, top 8, sum, scale 2.5"
};

// `topk` stands in the top block of a prepared graph and chooses among [T, num_experts], 2-D. Nothing where a node between
// logits and choice is not one of the form's, where one of its values is written to in place, or where nothing of it is
// scored or normalised. Weights that go on through unknown nodes end where those begin.
std::optional<RouterForm> MatchRouterForm(torch::jit::Node* topk, int64_t num_experts, const torch::jit::AliasDb& aliases);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// FindConsumed: which nodes of a block nothing reads once its experts' sum is replaced.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <vector>

#include "passes/detect/region.h"

namespace autoep {

struct ReplacedSum {
  const torch::jit::Value* value = nullptr;
  int step = 0;  // uses after it will read something else
};

struct ConsumedNodes {
  std::vector<torch::jit::Node*> nodes;
  const torch::jit::Node* kept = nullptr;  // a node of an expert that something else reads; null: none
};

// `steps` is the region; `tokens` stays, whoever reads it.
ConsumedNodes FindConsumed(const GraphFlow& flow, const ExpertUnits& units, const std::set<int>& steps, const ReplacedSum& sum,
                           const torch::jit::Value* tokens);

}  // namespace autoep

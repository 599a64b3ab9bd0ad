// SPDX-License-Identifier: Apache-2.0
// The graphs that pass rewrite-moe has edited, for the passes that go on with its ops.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <vector>

#include "passes/pipeline.h"

namespace autoep {

struct RewrittenGraph {
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<const PlannedLayer*> layers;  // of all objects that run it
};

// In the order of the plan.
std::vector<RewrittenGraph> RewrittenGraphs(const torch::jit::Module& root, const PassContext& context);

}  // namespace autoep

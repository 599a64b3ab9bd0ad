// SPDX-License-Identifier: Apache-2.0
// The EP ops of one layer, put into the block's graph.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <string>

#include "passes/detect/match.h"
#include "passes/repack/plan.h"

namespace autoep {

// Gives the block what its ops read: placeholders [0, ...] for the expert weights, the placement table [E, 1, 2], the group's
// name and the layer's label.
void AddAttributes(torch::jit::Module& block, const PlannedLayer& planned);

// Inserts dispatch, experts and combine behind match.insert_after and returns the value that stands for match.out. The block's
// type must have the attributes. Throws c10::Error or ErrorReport if the ops are not registered.
torch::jit::Value* InsertEpOps(torch::jit::Graph& graph, const BlockMatch& match, const PlannedLayer& planned);

// The dispatch of each layer, by the attribute that names the layer.
std::map<std::string, torch::jit::Node*> FindDispatches(torch::jit::Graph& graph);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The graphs to edit: each block's own forward, prepared in place and matched again there.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <string>
#include <vector>

#include "passes/detect/match.h"
#include "passes/detect/moe_layer.h"
#include "plugin/io/status.h"

namespace autoep {

struct MatchedLayer {
  BlockMatch match;
  std::vector<size_t> layers;  // by object of the BlockGraph: positions in the list of layers
};

// One graph, and all objects that run it.
struct BlockGraph {
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<torch::jit::Module> objects;
  std::vector<MatchedLayer> matches;  // in the graph's order
};

// Prepares the blocks of `layers`, distinct detected layers of `root`. Blocks that share a type share a graph where all
// objects of the type are among them and what the graph must say of them is the same; else each gets a type of its own, by
// clones that share all storages. kBug if a layer does not match in place as it was detected.
Result<std::vector<BlockGraph>> PrepareBlocks(torch::jit::Module& root, const std::vector<MoeLayer>& layers);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// From layers to graphs.
#include "passes/rewrite/rewritten.h"

#include <torch/csrc/jit/api/function_impl.h>

#include <map>

#include "passes/model/modules.h"

namespace autoep {

std::vector<RewrittenGraph> RewrittenGraphs(const torch::jit::Module& root, const PassContext& context) {
  std::vector<RewrittenGraph> graphs;
  std::map<const torch::jit::Graph*, size_t> places;
  for (const size_t i : context.rewritten) {
    const PlannedLayer& planned = context.plan().layers[i];
    const auto block = FindModule(root, planned.layer.path);
    const auto graph = torch::jit::toGraphFunction(block->get_method("forward").function()).graph();
    const auto [place, first] = places.emplace(graph.get(), graphs.size());
    if (first) graphs.push_back({graph, {}});
    graphs[place->second].layers.push_back(&planned);
  }
  return graphs;
}

}  // namespace autoep

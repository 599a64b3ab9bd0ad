// SPDX-License-Identifier: Apache-2.0
// %kept = aten::lt(%count, 12)
// becomes
// %kept = aten::lt(%count, 9223372036854775807)
#include "passes/rewrite/capacity.h"

#include <torch/csrc/jit/ir/ir.h>

#include <limits>

namespace autoep {

void LiftCapacity(torch::jit::Graph& graph, const BlockMatch& match, const MoeLayer& layer) {
  const auto capacity = layer.router.find("capacity");
  if (capacity == layer.router.end() || capacity->second != kCapacityOfTokens) return;
  for (torch::jit::Node* test : match.capacity_tests) {
    const torch::jit::WithInsertPoint here(test);
    test->replaceInput(1, graph.insertConstant(std::numeric_limits<int64_t>::max()));
  }
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Constant prim::If folding and dead code to a fixpoint.
#include "passes/normalize/simplify.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <cstdint>

namespace autoep {
namespace {

using torch::jit::Block;
using torch::jit::Node;

int64_t CountNodes(const Block* block) {
  int64_t count = 0;
  for (const Node* node : block->nodes()) {
    ++count;
    for (const Block* inner : node->blocks()) count += CountNodes(inner);
  }
  return count;
}

// Moves the nodes of the branch taken in front of `branch`, which becomes dead.
void TakeBranch(Node* branch, Block* taken) {
  for (auto it = taken->nodes().begin(); it != taken->nodes().end();) {
    Node* node = *it;
    ++it;
    node->moveBefore(branch);
  }
  for (size_t i = 0; i < branch->outputs().size(); ++i) {
    branch->output(i)->replaceAllUsesWith(taken->outputs().at(i));
  }
}

}  // namespace

void FoldConstantIfs(Block* block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    Node* node = *it;
    ++it;
    for (Block* inner : node->blocks()) FoldConstantIfs(inner);
    if (node->kind() != c10::prim::If) continue;
    const auto condition = torch::jit::constant_as<bool>(node->input());
    if (!condition) continue;
    TakeBranch(node, node->blocks().at(*condition ? 0 : 1));
    node->destroy();
  }
}

void RemoveDeadCode(const std::shared_ptr<torch::jit::Graph>& graph) {
  int64_t before = 0;
  do {
    before = CountNodes(graph->block());
    torch::jit::EliminateDeadCode(graph);
  } while (CountNodes(graph->block()) != before);
}

}  // namespace autoep

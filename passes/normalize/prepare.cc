// SPDX-License-Identifier: Apache-2.0
// PrepareBlockGraph: one flat graph in which a block can be matched. Callees come in as they were saved, never optimised:
// torch::jit::Inline would cache optimised copies that a later edit does not reach.
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include "passes/detect/match.h"
#include "passes/normalize/grad_mode.h"
#include "passes/normalize/simplify.h"

namespace autoep {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;

void InlineCalls(Block* block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    Node* node = *it;
    ++it;
    const bool call = node->kind() == c10::prim::CallMethod || node->kind() == c10::prim::CallFunction;
    if (torch::jit::GraphFunction* callee = call ? torch::jit::tryToGraphFunction(node) : nullptr) {
      Node* before = node->prev();
      if (node->kind() == c10::prim::CallFunction) node->removeInput(0);
      torch::jit::inlineCallTo(node, callee, callee->graph().get());
      // Go on inside what was inserted: callees call too.
      it = torch::jit::graph_node_list_iterator(before->next(), torch::jit::kNextDirection);
      continue;
    }
    for (Block* inner : node->blocks()) InlineCalls(inner);
  }
}

}  // namespace

void PrepareBlockGraph(const std::shared_ptr<Graph>& graph) {
  InlineCalls(graph->block());
  // That of a graph would analyse its aliases each time.
  torch::jit::LowerSimpleTuples(graph->block());
  FoldConstantIfs(graph->block());
  torch::jit::LowerSimpleTuples(graph->block());
  RemoveDeadCode(graph);
  RemoveIdleGradModes(graph->block());
  RemoveDeadCode(graph);
}

}  // namespace autoep

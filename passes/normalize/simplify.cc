// SPDX-License-Identifier: Apache-2.0
// Constant prim::If folding and dead code to a fixpoint.
#include "passes/normalize/simplify.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <cstdint>
#include <optional>

namespace autoep {
namespace {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

int64_t CountNodes(const Block* block) {
  int64_t count = 0;
  for (const Node* node : block->nodes()) {
    ++count;
    for (const Block* inner : node->blocks()) count += CountNodes(inner);
  }
  return count;
}

// A condition known without running anything: a constant, its negation, or a test for None that the types decide.
std::optional<bool> KnownCondition(const Value* value) {
  if (const auto constant = torch::jit::constant_as<bool>(const_cast<Value*>(value))) return *constant;
  const Node* node = value->node();
  if (node->kind() == aten::__not__) {
    const auto inner = KnownCondition(node->input());
    return inner ? std::optional<bool>(!*inner) : std::nullopt;
  }
  const bool is = node->kind() == aten::__is__;
  if (!is && node->kind() != aten::__isnot__) return std::nullopt;
  const Value* a = node->inputs()[0];
  const Value* b = node->inputs()[1];
  if (a->mustBeNone() && b->mustBeNone()) return is;
  if (a->mustBeNone() ? b->mustNotBeNone() : b->mustBeNone() && a->mustNotBeNone()) return !is;
  return std::nullopt;
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
    const auto condition = KnownCondition(node->input());
    if (!condition) continue;
    TakeBranch(node, node->blocks().at(*condition ? 0 : 1));
    node->destroy();
  }
}

void RemoveDeadCode(const std::shared_ptr<torch::jit::Graph>& graph) {
  // What is dead without a look at aliases, so that these, which take most of the time, are mostly analysed once.
  torch::jit::EliminateDeadCode(graph->block());
  int64_t before = 0;
  do {
    before = CountNodes(graph->block());
    torch::jit::EliminateDeadCode(graph);
  } while (CountNodes(graph->block()) != before);
}

}  // namespace autoep

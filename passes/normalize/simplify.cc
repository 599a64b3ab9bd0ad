// SPDX-License-Identifier: Apache-2.0
// Constant prim::If folding and dead code to a fixpoint.
#include "passes/normalize/simplify.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <algorithm>
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

// What an op writes in place is read behind it, under the name that it had before.
bool WritesWhatIsRead(const Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema || !schema->is_mutable()) return false;
  for (size_t i = 0; i < std::min(schema->arguments().size(), node->inputs().size()); ++i) {
    const c10::AliasInfo* alias = schema->arguments()[i].alias_info();
    if (!alias || !alias->isWrite()) continue;
    const auto& uses = node->input(i)->uses();
    if (std::any_of(uses.begin(), uses.end(), [&](const auto& use) { return use.user->isAfter(node); })) return true;
  }
  return false;
}

// True if nothing can be dead: from the last node to the first, each is read by one that is not, or does something besides.
bool AllUsed(const Block* block) {
  const auto nodes = block->nodes();
  return std::all_of(nodes.begin(), nodes.end(), [](const Node* node) {
    const auto outputs = node->outputs();
    const auto blocks = node->blocks();
    // A branch or a loop may have dead outputs among others.
    const bool all = blocks.empty() || std::all_of(outputs.begin(), outputs.end(), [](const Value* out) { return out->hasUses(); });
    return ((node->hasUses() && all) || node->hasSideEffects() || WritesWhatIsRead(node)) &&
           std::all_of(blocks.begin(), blocks.end(), AllUsed);
  });
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
  // What is dead without a look at aliases first: these take most of the time, and mostly nothing is left for them.
  if (!AllUsed(graph->block())) torch::jit::EliminateDeadCode(graph->block());
  while (!AllUsed(graph->block())) {
    const int64_t before = CountNodes(graph->block());
    torch::jit::EliminateDeadCode(graph);
    if (CountNodes(graph->block()) == before) return;
  }
}

}  // namespace autoep

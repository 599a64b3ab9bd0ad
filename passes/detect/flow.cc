// SPDX-License-Identifier: Apache-2.0
// Storage roots from the schemas' alias annotations, and control flow by merging.
#include "passes/detect/flow.h"

#include <ATen/core/function_schema.h>

#include <algorithm>

namespace autoep {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// The input whose storage output `i` may be, or -1.
int AliasedInput(const Node* node, size_t i) {
  if (node->inputs().empty()) return -1;
  const auto kind = node->kind();
  if (kind == prim::ListUnpack || kind == prim::TupleUnpack || kind == prim::TupleIndex || kind == prim::unchecked_cast ||
      kind == prim::unchecked_unwrap_optional) {
    return 0;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (!schema || i >= schema->returns().size()) return -1;
  const c10::AliasInfo* result = schema->returns()[i].alias_info();
  if (!result) return -1;
  if (result->isWildcardBefore() || result->isWildcardAfter()) return 0;
  const size_t count = std::min(schema->arguments().size(), node->inputs().size());
  for (size_t a = 0; a < count; ++a) {
    const c10::AliasInfo* argument = schema->arguments()[a].alias_info();
    if (!argument) continue;
    for (const auto& set : argument->beforeSets()) {
      if (result->beforeSets().contains(set)) return static_cast<int>(a);
    }
  }
  return 0;
}

bool MayHoldTensor(const Value* value) {
  if (value->node()->kind() == prim::Constant) return false;
  switch (value->type()->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::DeviceObjType:
      return false;
    default:
      return true;
  }
}

bool IsOpaque(const Node* node) {
  const auto kind = node->kind();
  return kind == prim::CallMethod || kind == prim::CallFunction || kind == prim::SetAttr || kind == prim::fork ||
         kind == prim::Enter || kind == prim::Exit;
}

}  // namespace

GraphFlow::GraphFlow(Graph& graph) {
  for (Value* input : graph.inputs()) Define(input, -1, NewRoot());
  for (Node* node : graph.nodes()) {
    if (node->outputs().empty()) bare_[node] = size();
    steps_.push_back({node, {}, {}});
    Visit(node, static_cast<int>(steps_.size()) - 1);
  }
  for (Value* output : graph.outputs()) roots_[RootOf(output)].last_use = size();
}

int GraphFlow::StepOf(const Value* value) const { return step_of_[value->unique()]; }

int GraphFlow::StepOf(const Node* node) const {
  while (node->owningBlock() != node->owningGraph()->block()) node = node->owningBlock()->owningNode();
  if (!node->outputs().empty()) return StepOf(node->output(0));
  const auto at = bare_.find(node);
  return at == bare_.end() ? size() : at->second;
}

GraphFlow::Root GraphFlow::RootOf(const Value* value) const { return Find(root_of_[value->unique()]); }

int GraphFlow::LastWriterBefore(Root root, int step) const {
  const std::vector<int>& writers = Writers(root);
  const auto at = std::lower_bound(writers.begin(), writers.end(), step);
  return at == writers.begin() ? -1 : *(at - 1);
}

GraphFlow::Root GraphFlow::Find(Root root) const {
  while (roots_[root].parent != root) {
    roots_[root].parent = roots_[roots_[root].parent].parent;
    root = roots_[root].parent;
  }
  return root;
}

GraphFlow::Root GraphFlow::NewRoot() {
  const Root root = static_cast<Root>(roots_.size());
  roots_.emplace_back();
  roots_.back().parent = root;
  return root;
}

void GraphFlow::Define(Value* value, int step, Root root) {
  const size_t id = value->unique();
  if (id >= root_of_.size()) {
    root_of_.resize(id * 2 + 64, -1);
    step_of_.resize(id * 2 + 64, -1);
  }
  root_of_[id] = root;
  step_of_[id] = step;
  roots_[Find(root)].values.push_back(value);
}

void GraphFlow::Merge(Root a, Root b) {
  a = Find(a);
  b = Find(b);
  if (a == b) return;
  if (roots_[a].values.size() < roots_[b].values.size()) std::swap(a, b);
  RootInfo& into = roots_[a];
  RootInfo& from = roots_[b];
  from.parent = a;
  into.last_use = std::max(into.last_use, from.last_use);
  into.values.insert(into.values.end(), from.values.begin(), from.values.end());
  into.elements.insert(into.elements.end(), from.elements.begin(), from.elements.end());
  into.writers.insert(into.writers.end(), from.writers.begin(), from.writers.end());
  std::sort(into.writers.begin(), into.writers.end());
  into.writers.erase(std::unique(into.writers.begin(), into.writers.end()), into.writers.end());
  from = RootInfo();
  from.parent = a;
}

void GraphFlow::Write(Root root, int step) {
  root = Find(root);
  std::vector<int>& writers = roots_[root].writers;
  if (writers.empty() || writers.back() != step) writers.push_back(step);
  std::vector<Root>& writes = steps_[step].writes;
  if (std::find(writes.begin(), writes.end(), root) == writes.end()) writes.push_back(root);
}

void GraphFlow::VisitOutputs(Node* node, int step) {
  for (size_t i = 0; i < node->outputs().size(); ++i) {
    const int input = AliasedInput(node, i);
    Define(node->output(i), step, input < 0 ? NewRoot() : RootOf(node->input(input)));
  }
}

void GraphFlow::VisitBlock(Block* block, int step) {
  for (Value* input : block->inputs()) Define(input, step, NewRoot());
  for (Node* node : block->nodes()) Visit(node, step);
  for (Value* output : block->outputs()) {
    roots_[RootOf(output)].last_use = step;
    if (StepOf(output) != step) steps_[step].reads.push_back(output);
  }
}

void GraphFlow::Visit(Node* node, int step) {
  for (Value* input : node->inputs()) {
    RootInfo& root = roots_[RootOf(input)];
    root.last_use = std::max(root.last_use, step);
    if (StepOf(input) != step) steps_[step].reads.push_back(input);
  }
  for (Block* block : node->blocks()) VisitBlock(block, step);
  VisitOutputs(node, step);
  const auto join = [&](Value* a, Value* b) {
    if (MayHoldTensor(a) && MayHoldTensor(b)) Merge(RootOf(a), RootOf(b));
  };
  if (node->kind() == prim::If) {
    for (Block* block : node->blocks()) {
      for (size_t i = 0; i < node->outputs().size(); ++i) join(node->output(i), block->outputs()[i]);
    }
  } else if (node->kind() == prim::Loop) {
    Block* body = node->blocks().at(0);
    for (size_t i = 0; i < node->outputs().size(); ++i) {
      join(node->output(i), node->input(i + 2));
      join(node->output(i), body->inputs()[i + 1]);
      join(node->output(i), body->outputs()[i + 1]);
    }
  } else if (node->kind() == prim::ListConstruct || node->kind() == prim::TupleConstruct) {
    for (Value* input : node->inputs()) roots_[RootOf(node->output())].elements.push_back(RootOf(input));
  } else if (node->kind() == aten::append) {
    roots_[RootOf(node->input(0))].elements.push_back(RootOf(node->input(1)));
  }
  if (IsOpaque(node)) {
    for (Value* input : node->inputs()) {
      if (MayHoldTensor(input)) Write(RootOf(input), step);
    }
  } else if (const c10::FunctionSchema* schema = node->maybeSchema()) {
    const size_t count = std::min(schema->arguments().size(), node->inputs().size());
    for (size_t i = 0; i < count; ++i) {
      const c10::AliasInfo* alias = schema->arguments()[i].alias_info();
      if (alias && alias->isWrite()) Write(RootOf(node->input(i)), step);
    }
  }
}

}  // namespace autoep

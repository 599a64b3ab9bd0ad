// SPDX-License-Identifier: Apache-2.0
//   %mode = prim::CreateObject(); prim::SetAttr[name="prev"](%mode, %off); prim::Enter(%mode); ..; prim::Exit(%mode)
#include "passes/normalize/grad_mode.h"

#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>
#include <set>
#include <vector>

namespace autoep {
namespace {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

// A method that does nothing but switch the mode and keep what it was.
bool SwitchesModeOnly(const torch::jit::Function* method) {
  static const std::set<c10::Symbol> kSwitching = {prim::Constant, prim::GetAttr, prim::SetAttr,
                                                   c10::Symbol::fromQualString("aten::is_grad_enabled"),
                                                   c10::Symbol::fromQualString("aten::set_grad_enabled")};
  if (!method || !method->isGraphFunction()) return false;
  const auto nodes = torch::jit::toGraphFunction(*method).graph()->nodes();
  return std::all_of(nodes.begin(), nodes.end(), [](const Node* node) { return kSwitching.contains(node->kind()); });
}

bool IsGradMode(const c10::TypePtr& type) {
  const auto mode = type->cast<c10::ClassType>();
  return mode && SwitchesModeOnly(mode->findMethod("__enter__")) && SwitchesModeOnly(mode->findMethod("__exit__"));
}

// Integers or truths, whatever they are made of.
bool MakesWholeNumbers(const Node* node) {
  static const std::set<c10::Symbol> kinds = {aten::one_hot, aten::nonzero, aten::argsort, aten::argmax, aten::eq,
                                              aten::ne,      aten::lt,      aten::le,      aten::gt,     aten::ge};
  return kinds.contains(node->kind());
}

// Integers or truths, where the tensors that it takes are.
bool KeepsWholeNumbers(const Node* node) {
  static const std::set<c10::Symbol> kinds = {aten::permute, aten::transpose, aten::select,     aten::slice,
                                              aten::index,   aten::view,      aten::reshape,    aten::unsqueeze,
                                              aten::squeeze, aten::unbind,    prim::ListUnpack, prim::ListConstruct};
  const size_t inputs = node->inputs().size();
  if (node->kind() == aten::sum || node->kind() == aten::cumsum) return node->inputs()[inputs - 1]->mustBeNone();
  return kinds.contains(node->kind()) || (node->kind() == aten::where && inputs == 1);
}

bool HoldsTensor(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  const auto inner = type->containedTypes();
  return type->kind() != c10::TypeKind::ClassType && std::any_of(inner.begin(), inner.end(), HoldsTensor);
}

bool HasNoGradient(const Value* value) {
  if (!HoldsTensor(value->type())) return true;
  const Node* node = value->node();
  if (node->kind() == aten::topk || node->kind() == aten::sort) return value->offset() == 1;
  const auto inputs = node->inputs();
  return MakesWholeNumbers(node) || (KeepsWholeNumbers(node) && std::all_of(inputs.begin(), inputs.end(), HasNoGradient));
}

// A node that gives nothing does something.
bool ComputesNoGradient(const Node* node) {
  const auto outputs = node->outputs();
  if (outputs.empty() || !node->blocks().empty() || node->hasSideEffects()) return false;
  return std::all_of(outputs.begin(), outputs.end(), HasNoGradient);
}

// The nodes that set the mode up, enter and leave it, in order, if nothing else is done with it and all are in one block.
std::vector<Node*> UsersOfMode(Node* object) {
  std::vector<Node*> users;
  for (const torch::jit::Use& use : object->output()->uses()) users.push_back(use.user);
  std::sort(users.begin(), users.end(), [](const Node* a, const Node* b) { return a->isBefore(b); });
  int enters = 0, exits = 0;
  for (const Node* user : users) {
    const bool known = user->kind() == prim::SetAttr || user->kind() == prim::Enter || user->kind() == prim::Exit;
    if (!known || user->input(0) != object->output() || user->owningBlock() != object->owningBlock()) return {};
    enters += user->kind() == prim::Enter;
    exits += user->kind() == prim::Exit;
  }
  const bool once = enters == 1 && exits == 1 && users.back()->kind() == prim::Exit;
  return once ? users : std::vector<Node*>();
}

// The nodes to remove, last first, or none.
std::vector<Node*> FindIdleMode(Node* object) {
  if (object->kind() != prim::CreateObject || !IsGradMode(object->output()->type())) return {};
  std::vector<Node*> users = UsersOfMode(object);
  if (users.empty()) return {};
  const auto enter = std::find_if(users.begin(), users.end(), [](const Node* user) { return user->kind() == prim::Enter; });
  for (const Node* node = (*enter)->next(); node != users.back(); node = node->next()) {
    if (!ComputesNoGradient(node)) return {};
  }
  users.insert(users.begin(), object);
  std::reverse(users.begin(), users.end());
  const auto read = [](const Node* user) { return user->kind() != prim::CreateObject && user->hasUses(); };
  return std::any_of(users.begin(), users.end(), read) ? std::vector<Node*>() : users;
}

}  // namespace

void RemoveIdleGradModes(Block* block) {
  std::vector<Node*> gone;
  for (Node* node : block->nodes()) {
    for (Block* inner : node->blocks()) RemoveIdleGradModes(inner);
    const std::vector<Node*> mode = FindIdleMode(node);
    gone.insert(gone.end(), mode.begin(), mode.end());
  }
  for (Node* node : gone) node->destroy();
}

}  // namespace autoep

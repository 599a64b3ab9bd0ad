// SPDX-License-Identifier: Apache-2.0
// Walks over objects and calls.
#include "passes/model/modules.h"

#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <utility>

namespace autoep {

using torch::jit::GraphFunction;
using torch::jit::Node;

std::optional<torch::jit::Module> FindModule(const torch::jit::Module& root, const std::string& path) {
  torch::jit::Module module = root;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    if (!module.hasattr(name) || !module.attr(name).isModule()) return std::nullopt;
    module = module.attr(name).toModule();
    begin = end + 1;
  }
  return module;
}

ObjectIndex::ObjectIndex(const torch::jit::Module& root) { Visit(root._ivalue()); }

void ObjectIndex::Visit(const at::IValue& value) {
  if (value.isObject()) {
    const torch::jit::ObjectPtr object = value.toObject();
    if (!seen_.insert(object.get()).second) return;
    objects_.push_back(object);
    c10::ClassTypePtr type = object->type();
    auto& same = by_type_[type.get()];
    if (same.empty()) types_.push_back(std::move(type));
    same.push_back(object);
    for (const at::IValue& slot : object->slots()) Visit(slot);
  } else if (value.isList()) {
    for (const at::IValue& element : value.toListRef()) Visit(element);
  } else if (value.isTuple()) {
    for (const at::IValue& element : value.toTupleRef().elements()) Visit(element);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) Visit(entry.value());
  }
}

void ForEachNode(torch::jit::Block* block, const std::function<void(Node*)>& visit) {
  for (Node* node : block->nodes()) {
    visit(node);
    for (torch::jit::Block* inner : node->blocks()) ForEachNode(inner, visit);
  }
}

namespace {

// The function that a node calls, or null: no call, a call through an interface, or a method that is not there.
GraphFunction* CalleeOf(Node* node) {
  if (node->kind() == c10::prim::CallFunction) return torch::jit::tryToGraphFunction(node);
  if (node->kind() != c10::prim::CallMethod) return nullptr;
  const auto type = node->input(0)->type()->cast<c10::ClassType>();
  torch::jit::Function* method = type ? type->findMethod(node->s(c10::attr::name)) : nullptr;
  return method && method->isGraphFunction() ? &torch::jit::toGraphFunction(*method) : nullptr;
}

}  // namespace

std::set<GraphFunction*> Callees(GraphFunction& function) {
  std::set<GraphFunction*> callees;
  ForEachNode(function.graph()->block(), [&](Node* node) {
    if (GraphFunction* callee = CalleeOf(node)) callees.insert(callee);
  });
  return callees;
}

std::vector<GraphFunction*> AllFunctions(const ObjectIndex& index, const SeeNode& see) {
  std::vector<GraphFunction*> functions;
  std::unordered_set<GraphFunction*> seen;
  const auto add = [&](GraphFunction* function) {
    if (seen.insert(function).second) functions.push_back(function);
  };
  for (const c10::ClassTypePtr& type : index.types()) {
    for (torch::jit::Function* method : type->methods()) {
      if (method->isGraphFunction()) add(&torch::jit::toGraphFunction(*method));
    }
  }
  for (size_t i = 0; i < functions.size(); ++i) {
    GraphFunction& function = *functions[i];
    ForEachNode(function.graph()->block(), [&](Node* node) {
      GraphFunction* callee = CalleeOf(node);
      if (see) see(function, node, callee);
      if (callee) add(callee);
    });
  }
  return functions;
}

}  // namespace autoep

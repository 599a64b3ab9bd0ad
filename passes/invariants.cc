// SPDX-License-Identifier: Apache-2.0
// Checks of functions, then of objects.
#include "passes/invariants.h"

#include <fmt/format.h>

#include <set>
#include <sstream>
#include <utility>

#include "passes/model/modules.h"

namespace autoep {
namespace {

using torch::jit::GraphFunction;
using torch::jit::Node;

// Types and attributes that some graph reads or writes.
using AttributeUses = std::set<std::pair<const c10::ClassType*, std::string>>;

std::string Text(const Node& node) {
  std::ostringstream out;
  out << node;
  const std::string text = out.str();
  return text.substr(0, text.find('\n'));
}

Status Broken(const GraphFunction& function, const Node& node, const std::string& what) {
  return Status(Code::kBug, fmt::format("{}: {}: {}", function.qualname().qualifiedName(), what, Text(node)));
}

Status CheckNode(const GraphFunction& function, const Node& node, AttributeUses& uses) {
  const c10::Symbol kind = node.kind();
  if (kind == c10::prim::GetAttr || kind == c10::prim::SetAttr) {
    const auto type = node.input(0)->type()->cast<c10::ClassType>();
    const std::string& name = node.s(c10::attr::name);
    if (!type) return Status();
    if (!type->hasAttribute(name) && !type->hasConstant(name)) return Broken(function, node, "its type has no such attribute");
    uses.emplace(type.get(), name);
  } else if (kind == c10::prim::CallMethod) {
    const auto type = node.input(0)->type()->cast<c10::ClassType>();
    if (type && !type->findMethod(node.s(c10::attr::name))) return Broken(function, node, "its type has no such method");
  } else if (!kind.is_prim() && node.maybeSchema() == nullptr) {
    return Broken(function, node, "no op takes these arguments");
  }
  return Status();
}

Status CheckFunction(const GraphFunction& function, AttributeUses& uses) {
  const auto graph = function.graph();
  try {
    graph->lint();
  } catch (const std::exception& error) {
    return Status(Code::kBug, fmt::format("{}: the graph is malformed: {}", function.qualname().qualifiedName(), error.what()));
  }
  Status status;
  ForEachNode(graph->block(), [&](Node* node) {
    if (status.ok()) status = CheckNode(function, *node, uses);
  });
  return status;
}

Status CheckObject(const c10::ivalue::Object& object) {
  const auto type = object.type();
  const std::string name = type->name()->qualifiedName();
  if (object.slots().size() != type->numAttributes()) {
    return Status(Code::kBug, fmt::format("an object of {} has {} slots for {} attributes", name, object.slots().size(),
                                          type->numAttributes()));
  }
  for (size_t i = 0; i < type->numAttributes(); ++i) {
    if (object.getSlot(i).type()->isSubtypeOf(*type->getAttribute(i))) continue;
    return Status(Code::kBug, fmt::format("{}.{} is to be {}, and an object holds {}", name, type->getAttributeName(i),
                                          type->getAttribute(i)->repr_str(), object.getSlot(i).type()->repr_str()));
  }
  return Status();
}

Status CheckOrphans(const ObjectIndex& index, const AttributeUses& uses) {
  for (const c10::ClassTypePtr& type : index.types()) {
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      const std::string& name = type->getAttributeName(i);
      if (!name.starts_with("autoep_") || uses.count({type.get(), name}) > 0) continue;
      return Status(Code::kBug, fmt::format("no graph reads {}.{}", type->name()->qualifiedName(), name));
    }
  }
  return Status();
}

}  // namespace

Status CheckInvariants(const torch::jit::Module& module) {
  const ObjectIndex index(module);
  AttributeUses uses;
  for (GraphFunction* function : AllFunctions(index)) AUTOEP_RETURN_IF_ERROR(CheckFunction(*function, uses));
  for (const torch::jit::ObjectPtr& object : index.objects()) AUTOEP_RETURN_IF_ERROR(CheckObject(*object));
  return CheckOrphans(index, uses);
}

std::string Signatures(const torch::jit::Module& module, const std::set<const void*>& internal) {
  std::ostringstream out;
  for (torch::jit::Function* method : module.type()->methods()) {
    if (internal.count(method) == 0) out << method->getSchema() << "\n";
  }
  return out.str();
}

std::string PrintModel(const torch::jit::Module& module) {
  const ObjectIndex index(module);
  std::ostringstream out;
  for (const c10::ClassTypePtr& type : index.types()) {
    out << "class " << type->name()->qualifiedName() << "  # " << index.OfType(type.get()).size() << " objects\n";
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      out << "  " << (type->is_parameter(i) ? "parameter " : "") << type->getAttributeName(i) << " : "
          << type->getAttribute(i)->repr_str() << "\n";
    }
  }
  for (GraphFunction* function : AllFunctions(index)) {
    out << "\n" << function->qualname().qualifiedName() << "\n" << function->graph()->toString(/*print_source_locations=*/false);
  }
  return out.str();
}

}  // namespace autoep

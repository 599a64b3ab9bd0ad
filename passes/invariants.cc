// SPDX-License-Identifier: Apache-2.0
// Checks of functions, then of objects.
#include "passes/invariants.h"

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "passes/model/modules.h"

namespace autoep {
namespace {

using torch::jit::GraphFunction;
using torch::jit::Node;

constexpr std::string_view kOwn = "autoep_";  // begins the names of attributes that the passes add

std::string Text(const Node& node) {
  std::ostringstream out;
  out << node;
  const std::string text = out.str();
  return text.substr(0, text.find('\n'));
}

Status Broken(const GraphFunction& function, const Node& node, const std::string& what) {
  return Status(Code::kBug, fmt::format("{}: {}: {}", function.qualname().qualifiedName(), what, Text(node)));
}

Status CheckNode(const GraphFunction& function, const Node& node) {
  const c10::Symbol kind = node.kind();
  if (kind == c10::prim::GetAttr || kind == c10::prim::SetAttr) {
    const auto type = node.input(0)->type()->cast<c10::ClassType>();
    const std::string& name = node.s(c10::attr::name);
    if (!type) return Status();
    if (!type->hasAttribute(name) && !type->hasConstant(name)) return Broken(function, node, "its type has no such attribute");
  } else if (kind == c10::prim::CallMethod) {
    const auto type = node.input(0)->type()->cast<c10::ClassType>();
    if (type && !type->findMethod(node.s(c10::attr::name))) return Broken(function, node, "its type has no such method");
  } else if (!kind.is_prim() && node.maybeSchema() == nullptr) {
    return Broken(function, node, "no op takes these arguments");
  }
  return Status();
}

Status Lint(const GraphFunction& function) {
  try {
    function.graph()->lint();
  } catch (const std::exception& error) {
    return Status(Code::kBug, fmt::format("{}: the graph is malformed: {}", function.qualname().qualifiedName(), error.what()));
  }
  return Status();
}

Status CheckNodes(const GraphFunction& function) {
  Status status;
  ForEachNode(function.graph()->block(), [&](Node* node) {
    if (status.ok()) status = CheckNode(function, *node);
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

// A group's name goes unread where one op computes a layer on one rank; loaders set it all the same.
bool IsUnusedGroup(const c10::ClassType* type, const std::string& name, const Fingerprint& now) {
  constexpr std::string_view kGroup = "group";
  if (!name.ends_with(kGroup)) return false;
  return now.own_uses.contains({type, name.substr(0, name.size() - kGroup.size()) + "placement"});
}

Status CheckOrphans(const ObjectIndex& index, const Fingerprint& now) {
  for (const c10::ClassTypePtr& type : index.types()) {
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      const std::string& name = type->getAttributeName(i);
      if (!name.starts_with(kOwn) || now.own_uses.contains({type.get(), name}) || IsUnusedGroup(type.get(), name, now)) continue;
      return Status(Code::kBug, fmt::format("no graph reads {}.{}", type->name()->qualifiedName(), name));
    }
  }
  return Status();
}

}  // namespace

Status CheckInvariants(const ObjectIndex& index, const Fingerprint& now, const Fingerprint* before) {
  const bool same_types = before && before->types == now.types;
  for (const GraphFunction* function : now.order) {
    const bool same =
        before && before->functions.contains(function) && before->functions.at(function) == now.functions.at(function);
    if (!same) AUTOEP_RETURN_IF_ERROR(Lint(*function));
    if (!same || !same_types) AUTOEP_RETURN_IF_ERROR(CheckNodes(*function));
  }
  for (const torch::jit::ObjectPtr& object : index.objects()) AUTOEP_RETURN_IF_ERROR(CheckObject(*object));
  return CheckOrphans(index, now);
}

std::string Signatures(const torch::jit::Module& module, const std::set<const void*>& internal) {
  std::ostringstream out;
  for (torch::jit::Function* method : module.type()->methods()) {
    if (internal.count(method) == 0) out << method->getSchema() << "\n";
  }
  return out.str();
}

namespace {

class Hash {
 public:
  void Add(uint64_t number) { value_ = (value_ ^ number) * 0x9E3779B97F4A7C15ULL + (value_ >> 29); }
  void Add(const std::string& text) { Add(std::hash<std::string>()(text)); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};

void AddAttribute(const Node& node, c10::Symbol name, Hash& hash) {
  switch (node.kindOf(name)) {
    case torch::jit::AttributeKind::i:
      return hash.Add(static_cast<uint64_t>(node.i(name)));
    case torch::jit::AttributeKind::f:
      return hash.Add(std::hash<double>()(node.f(name)));
    case torch::jit::AttributeKind::s:
      return hash.Add(node.s(name));
    case torch::jit::AttributeKind::t:
      return hash.Add(reinterpret_cast<uintptr_t>(node.t(name).unsafeGetTensorImpl()));
    default:
      return;
  }
}

void AddAttributes(const Node& node, Hash& hash) {
  if (!node.hasAttributes()) return;
  // Most nodes that have one have but this: no list of names is made for them.
  const c10::Symbol usual = node.kind() == c10::prim::Constant ? c10::attr::value : c10::attr::name;
  if (node.numAttributes() == 1 && node.hasAttribute(usual)) return AddAttribute(node, usual, hash);
  for (const c10::Symbol name : node.attributeNames()) AddAttribute(node, name, hash);
}

void AddNode(const Node& node, Hash& hash) {
  hash.Add(static_cast<uint64_t>(static_cast<c10::unique_t>(node.kind())));
  for (const torch::jit::Value* input : node.inputs()) hash.Add(input->unique());
  for (const torch::jit::Value* output : node.outputs()) hash.Add(output->unique());
  AddAttributes(node, hash);
}

void AddOwnUse(const Node& node, Fingerprint& fingerprint) {
  if ((node.kind() != c10::prim::GetAttr && node.kind() != c10::prim::SetAttr) || !node.s(c10::attr::name).starts_with(kOwn))
    return;
  if (const auto type = node.input(0)->type()->cast<c10::ClassType>())
    fingerprint.own_uses.emplace(type.get(), node.s(c10::attr::name));
}

}  // namespace

Fingerprint TakeFingerprint(const ObjectIndex& index) {
  Fingerprint fingerprint;
  Hash types;
  for (const c10::ClassTypePtr& type : index.types()) {
    types.Add(type->name()->qualifiedName());
    types.Add(index.OfType(type.get()).size());
    for (size_t i = 0; i < type->numAttributes(); ++i) types.Add(type->getAttributeName(i));
    for (const torch::jit::Function* method : type->methods()) types.Add(method->name());
  }
  fingerprint.types = types.value();
  std::unordered_map<const GraphFunction*, Hash> nodes;
  const GraphFunction* last = nullptr;
  Hash* hash = nullptr;
  fingerprint.order = AllFunctions(index, [&](GraphFunction& function, Node* node, GraphFunction* callee) {
    if (&function != last) hash = &nodes[&function];
    last = &function;
    AddNode(*node, *hash);
    AddOwnUse(*node, fingerprint);
    if (callee) fingerprint.called.insert(callee);
  });
  for (GraphFunction* function : fingerprint.order) {
    Hash& whole = nodes[function];
    for (const torch::jit::Value* output : function->graph()->outputs()) whole.Add(output->unique());
    fingerprint.functions[function] = whole.value();
  }
  return fingerprint;
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

// SPDX-License-Identifier: Apache-2.0
// Pass prune-experts: drops the modules and tensors that only the old expert compute read, and the methods that were called
// for it and are called no more. Nothing else is dropped, used or not. At the end no byte of an expert may be left.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/jit/api/compilation_unit.h>

#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "passes/model/tensors.h"
#include "passes/pipeline.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr char kName[] = "prune-experts";

using torch::jit::GraphFunction;
using Attribute = std::pair<const c10::ClassType*, std::string>;

// What one rewritten layer no longer needs: attributes of modules, outermost first.
struct Candidate {
  std::string module;  // path of the holder
  std::string attribute;
  bool is_tensor = false;
};

std::pair<std::string, std::string> Split(const std::string& path) {
  const size_t dot = path.rfind('.');
  if (dot == std::string::npos) return {"", path};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

std::vector<Candidate> Candidates(const PlannedLayer& planned) {
  std::vector<Candidate> candidates;
  const std::string& block = planned.layer.path;
  for (const std::string& consumed : planned.layer.consumed_modules) {
    if (consumed.empty()) continue;
    const auto [module, attribute] = Split(block.empty() ? consumed : block + "." + consumed);
    candidates.push_back({module, attribute, false});
  }
  for (const PlannedTensor& tensor : planned.tensors) {
    for (const contract::SourcePart& part : tensor.tensor.parts) {
      if (part.tensor.starts_with("constant:")) continue;
      const auto [module, attribute] = Split(part.tensor);
      candidates.push_back({module, attribute, true});
    }
  }
  return candidates;
}

using Types = std::set<const c10::ClassType*>;

// Who reads the attributes of `types`, and which functions can still be reached from an entry point: a function that nothing
// called before.
class Usage {
 public:
  Usage(const ObjectIndex& index, const Types& types, const std::set<const void*>& called_before) {
    std::unordered_map<GraphFunction*, std::vector<GraphFunction*>> callees;
    std::vector<GraphFunction*> pending =
        AllFunctions(index, [&](GraphFunction& function, torch::jit::Node* node, GraphFunction* callee) {
          if (callee) callees[&function].push_back(callee);
          if (node->kind() != c10::prim::GetAttr && node->kind() != c10::prim::SetAttr) return;
          const auto* type = node->input(0)->type()->castRaw<c10::ClassType>();
          if (type && types.contains(type)) readers_[{type, node->s(c10::attr::name)}].insert(&function);
        });
    std::erase_if(pending, [&](GraphFunction* function) { return called_before.contains(function); });
    while (!pending.empty()) {
      GraphFunction* function = pending.back();
      pending.pop_back();
      if (!live_.insert(function).second) continue;
      for (GraphFunction* callee : callees[function]) pending.push_back(callee);
    }
  }

  const std::set<GraphFunction*>& Readers(const Attribute& attribute) { return readers_[attribute]; }
  bool IsLive(GraphFunction* function) const { return live_.count(function) > 0; }

 private:
  std::map<Attribute, std::set<GraphFunction*>> readers_;
  std::set<GraphFunction*> live_;
};

class Pruner {
 public:
  // With `candidates` of all layers: what they give up.
  Pruner(MoeModel& model, const PassContext& context, const std::vector<std::vector<Candidate>>& candidates)
      : model_(model),
        index_(model.module),
        given_up_(GivenUp(model, candidates)),
        usage_(index_, Holders(), context.called_functions) {}

  // The names dropped.
  std::vector<std::string> Drop(const std::vector<Candidate>& candidates) {
    std::vector<std::string> dropped;
    for (const Candidate& candidate : candidates) {
      const auto module = FindModule(model_.module, candidate.module);
      if (!module || !module->hasattr(candidate.attribute)) continue;
      const c10::ClassTypePtr type = module->type();
      if (DropAttribute(type, candidate.attribute)) dropped.push_back(candidate.attribute);
    }
    return dropped;
  }

 private:
  using Object = const c10::ivalue::Object*;

  static std::set<std::pair<Object, std::string>> GivenUp(const MoeModel& model,
                                                          const std::vector<std::vector<Candidate>>& candidates) {
    std::set<std::pair<Object, std::string>> given_up;
    for (const std::vector<Candidate>& of_layer : candidates) {
      for (const Candidate& candidate : of_layer) {
        const auto module = FindModule(model.module, candidate.module);
        if (module && module->hasattr(candidate.attribute)) given_up.insert({module->_ivalue().get(), candidate.attribute});
      }
    }
    return given_up;
  }

  Types Holders() const {
    Types types;
    for (const auto& [object, attribute] : given_up_) types.insert(object->type().get());
    return types;
  }

  // Of all objects of the type, if each of them gives it up and no live method reads it.
  bool DropAttribute(const c10::ClassTypePtr& type, const std::string& attribute) {
    const std::vector<torch::jit::ObjectPtr>& objects = index_.OfType(type.get());
    for (const torch::jit::ObjectPtr& object : objects) {
      if (given_up_.count({object.get(), attribute}) == 0) return false;
    }
    const std::set<GraphFunction*>& readers = usage_.Readers({type.get(), attribute});
    for (GraphFunction* reader : readers) {
      if (usage_.IsLive(reader)) return false;
    }
    for (GraphFunction* reader : readers) RemoveMethod(reader);
    const size_t slot = type->getAttributeSlot(attribute);
    for (const torch::jit::ObjectPtr& object : objects) object->unsafeRemoveSlot(slot);
    type->unsafeRemoveAttribute(attribute);
    return true;
  }

  // `function` is gone afterwards; it may be the reader of several attributes.
  void RemoveMethod(GraphFunction* function) {
    if (!removed_.insert(function).second) return;
    const c10::QualifiedName name = function->qualname();
    for (const c10::ClassTypePtr& type : index_.types()) {
      if (type->findMethod(name.name()) == function) type->unsafeRemoveMethod(name.name());
    }
    model_.module._ivalue()->compilation_unit()->unsafeRemoveMethod(name);
  }

  MoeModel& model_;
  const ObjectIndex index_;  // as it was before anything was dropped, and so are the next two
  const std::set<std::pair<Object, std::string>> given_up_;
  Usage usage_;
  std::set<const void*> removed_;
};

// No tensor that is left may share a storage with an expert's: LibTorch writes storages whole.
Status CheckNothingLeft(const MoeModel& model, const std::vector<const PlannedLayer*>& layers) {
  std::map<const void*, std::string> experts;
  for (const PlannedLayer* planned : layers) {
    for (const PlannedTensor& tensor : planned->tensors) {
      for (const at::Tensor& source : tensor.tensor.sources)
        experts.emplace(source.storage().unsafeGetStorageImpl(), planned->layer.path);
    }
  }
  std::vector<NamedTensor> left = AttributeTensors(model.module);
  for (at::Tensor& constant : GraphConstants(model.module)) left.push_back({"a constant", std::move(constant)});
  for (const NamedTensor& named : left) {
    const auto found = experts.find(named.tensor.storage().unsafeGetStorageImpl());
    if (found == experts.end()) continue;
    return Status(Code::kNoMoe,
                  fmt::format("'{}' holds expert weights of the block '{}' and is used by more than the experts: they cannot "
                              "be taken out of this model",
                              Printable(named.name), Printable(found->second)));
  }
  return Status();
}

class PruneExperts : public Pass {
 public:
  explicit PruneExperts(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    std::vector<const PlannedLayer*> layers;
    std::vector<std::vector<Candidate>> candidates;
    for (size_t i : context_.rewritten) {
      if (!context_.Allow(kName)) continue;
      layers.push_back(&context_.plan().layers[i]);
      candidates.push_back(Candidates(*layers.back()));
    }
    Pruner pruner(model, context_, candidates);
    Change change;
    for (size_t i = 0; i < layers.size(); ++i) {
      const std::vector<std::string> dropped = pruner.Drop(candidates[i]);
      if (dropped.empty()) continue;
      change.edits.push_back(fmt::format("{}: dropped {}", layers[i]->Name(), fmt::join(dropped, ", ")));
    }
    AUTOEP_RETURN_IF_ERROR(CheckNothingLeft(model, layers));
    return change;
  }

 private:
  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Drop the modules and tensors that only the old expert compute used", 20, true,
                                [](PassContext& context) { return std::make_unique<PruneExperts>(context); }});

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Names of modules and tensors, and the presets that know them.
#include "passes/detect/names.h"

#include <fmt/format.h>

#include <set>

#include "passes/detect/ir.h"
#include "plugin/io/text.h"
#include "presets/registry.h"

namespace autoep {

using torch::jit::Module;

namespace {

std::string Below(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }

bool HoldsOnly(const Module& module, const std::string& path, const std::set<std::string>& tensors) {
  if (module.named_buffers().size() > 0) return false;
  bool any = false;
  for (const auto& parameter : module.named_parameters()) {
    if (!tensors.contains(Below(path, parameter.name))) return false;
    any = true;
  }
  return any;
}

void Collect(const Module& module, const std::string& path, const std::string& below, const std::set<std::string>& tensors,
             std::vector<std::string>& found) {
  for (const auto& child : module.named_children()) {
    const std::string full = Below(path, child.name);
    const std::string relative = Below(below, child.name);
    if (HoldsOnly(child.value, full, tensors)) {
      found.push_back(relative);
    } else {
      Collect(child.value, full, relative, tensors, found);
    }
  }
}

BlockNames NamesOf(const Module& self) {
  BlockNames names;
  if (const auto name = self.type()->name()) names.class_name = name->qualifiedName();
  for (const auto& child : self.named_children()) names.children.push_back(child.name);
  for (const auto& tensor : self.named_parameters()) names.tensors.push_back(tensor.name);
  for (const auto& tensor : self.named_buffers()) names.tensors.push_back(tensor.name);
  return names;
}

}  // namespace

std::vector<std::string> FindConsumedModules(const Module& self, const std::string& path, const MoeLayer& layer) {
  std::set<std::string> tensors;
  for (const ExpertTensor& tensor : layer.tensors) {
    for (const contract::SourcePart& part : tensor.parts) tensors.insert(part.tensor);
  }
  std::vector<std::string> found;
  Collect(self, path, "", tensors, found);
  return found;
}

std::optional<Miss> NameLayer(const Module& self, const DetectOptions& options, MoeLayer& layer) {
  const BlockNames names = NamesOf(self);
  layer.class_name = BareClassName(names.class_name);
  std::optional<FamilyMatch> family = PresetRegistry::Builtin().MatchFamily(names);
  if (options.preset) family = FamilyMatch{options.preset, true};
  if (!family) return std::nullopt;
  layer.family = family->preset->name;
  if (!family->by_class) return std::nullopt;
  const BlockFacts facts{layer.activation, layer.weights_on_input ? "input" : "after", layer.router};
  const std::vector<std::string> differences = family->preset->Disagreements(facts);
  if (differences.empty()) return std::nullopt;
  return Refuse(layer.path, fmt::format("a block of the family {} must have its facts: {}", layer.family, JoinWords(differences)));
}

}  // namespace autoep

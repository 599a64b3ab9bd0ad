// SPDX-License-Identifier: Apache-2.0
// Names of modules and tensors, and the presets that know them.
#include "passes/detect/names.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>

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

// Compares the layout that a family's names say with how the graph reads the tensors.
class LayoutCheck {
 public:
  LayoutCheck(const Preset& preset, const ExpertLayout& layout, const MoeLayer& layer)
      : preset_(preset), layout_(layout), layer_(layer) {}

  std::vector<std::string> Differences() {
    for (const ExpertTensor& tensor : layer_.tensors) {
      const size_t before = found_.size();
      for (const contract::SourcePart& part : tensor.parts) {
        if (found_.size() == before) Compare(tensor, part);
      }
    }
    return std::move(found_);
  }

 private:
  void Compare(const ExpertTensor& tensor, const contract::SourcePart& part) {
    const std::string name = layer_.path.empty() ? part.tensor : part.tensor.substr(layer_.path.size() + 1);
    const auto said = layout_.RoleOf(name);
    if (!said) return;
    const bool up = !tensor.role.starts_with("gate_up") || part.row_begin > 0;
    const ExpertRole shown = RoleOf(tensor, part, *said, up);
    if (shown != *said) return Add(name, ExpertRoleName(shown), ExpertRoleName(*said));
    const auto stored = [](bool in_out) { return in_out ? "stored as [in, out]" : "stored as [out, in]"; };
    const bool transposed = std::find(layout_.transposed.begin(), layout_.transposed.end(), *said) != layout_.transposed.end();
    if (tensor.shape.size() == 3 && part.transposed != transposed) return Add(name, stored(part.transposed), stored(transposed));
    if (shown != ExpertRole::kGateUp) return;
    const std::string rows = RowOrder(up == (part.source_row_begin > 0), part.source_row_step > 1);
    const std::string said_rows = RowOrder(true, layout_.interleaved);
    if (rows != said_rows) Add(name, rows, said_rows);
  }

  static std::string RowOrder(bool gate_first, bool by_turns) {
    return fmt::format("{} and {}{}", gate_first ? "gate" : "up", by_turns ? "" : "then ", gate_first ? "up" : "gate") +
           (by_turns ? " by turns" : "");
  }

  // Both halves of a tensor that is said to hold gate and up, or what the part is.
  ExpertRole RoleOf(const ExpertTensor& tensor, const contract::SourcePart& part, ExpertRole said, bool up) const {
    if (tensor.role.starts_with("down")) return ExpertRole::kDown;
    if (tensor.role.starts_with("gate_up") && (said == ExpertRole::kGateUp || part.row_count > layer_.intermediate)) {
      return ExpertRole::kGateUp;
    }
    return up ? ExpertRole::kUp : ExpertRole::kGate;
  }

  void Add(const std::string& name, std::string_view shown, std::string_view said) {
    found_.push_back(fmt::format("{} is {} and in a {} it is {}", Printable(name), shown, preset_.name, said));
  }

  const Preset& preset_;
  const ExpertLayout& layout_;
  const MoeLayer& layer_;
  std::vector<std::string> found_;
};

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

namespace {

// The family of which this is the block's class, or the whole model's where all of it is one graph.
const Preset* FamilyOfClass(const std::string& class_name) {
  for (const Preset& preset : PresetRegistry::Builtin().presets()) {
    const auto& models = preset.model_classes;
    if (preset.block.Matches(class_name) || std::find(models.begin(), models.end(), class_name) != models.end()) return &preset;
  }
  return nullptr;
}

// Of a capacity where second choices are counted behind the first, which every known model makes from the number of tokens: the
// constant of a trace is its example's.
std::optional<Miss> SettleCapacity(MoeLayer& layer) {
  const auto capacity = layer.router.find("capacity");
  if (capacity == layer.router.end() || !layer.router.contains("second_choices")) return std::nullopt;
  const std::string baked =
      fmt::format("baked: the capacity of its router, {} tokens an expert, may be that of the trace's example", capacity->second);
  const Preset* family = FamilyOfClass(layer.class_name);
  if (!family || !family->facts.router.contains("capacity") || family->facts.router.at("capacity") != kCapacityOfTokens) {
    return Refuse(layer.path, baked + ", and no preset of its class says how it follows from the number of tokens");
  }
  layer.notes.push_back(baked + "; rebuilt without it; assumed: the capacity is the number of tokens, so that none is dropped");
  layer.rebuilt += (layer.rebuilt.empty() ? "" : "; ") + baked;
  capacity->second = kCapacityOfTokens;
  return std::nullopt;
}

}  // namespace

std::optional<Miss> NameLayer(const Module& self, const DetectOptions& options, MoeLayer& layer) {
  const BlockNames names = NamesOf(self);
  layer.class_name = BareClassName(names.class_name);
  std::optional<FamilyMatch> family = PresetRegistry::Builtin().MatchFamily(names);
  if (auto miss = SettleCapacity(layer)) return miss;
  if (options.preset) family = FamilyMatch{options.preset, true};
  if (!family) return std::nullopt;
  layer.family = family->preset->name;
  if (!family->by_class) return std::nullopt;
  const BlockFacts facts{layer.activation, layer.weights_on_input ? "input" : "after", layer.router};
  std::vector<std::string> differences = family->preset->Disagreements(facts);
  if (const ExpertLayout* layout = MatchLayout(*family->preset, names)) {
    const std::vector<std::string> others = LayoutCheck(*family->preset, *layout, layer).Differences();
    differences.insert(differences.end(), others.begin(), others.end());
  }
  if (differences.empty()) return std::nullopt;
  return Refuse(layer.path, fmt::format("a block of the family {} must have its facts: {}", layer.family, JoinWords(differences)));
}

}  // namespace autoep

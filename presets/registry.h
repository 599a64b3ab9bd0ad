// SPDX-License-Identifier: Apache-2.0
// PresetRegistry: the families that this build knows, embedded from presets/*.yaml, and how a block is given its family.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugin/io/status.h"
#include "presets/preset.h"

namespace autoep {

// What names say about a block.
struct BlockNames {
  std::string class_name;             // qualified and mangled, or bare; "" if unknown (frozen)
  std::vector<std::string> children;  // submodules of the block: "gate", "experts"
  std::vector<std::string> tensors;   // parameters and buffers below the block: "gate.weight", "experts.0.w1.weight"
};

struct FamilyMatch {
  const Preset* preset = nullptr;
  // True: the block's class is the family's, and its facts must hold. False: only the names of children and tensors are,
  // as in a hand-written block: they say which tensor is which, and neither the family's name nor its facts.
  bool by_class = false;
};

class PresetRegistry {
 public:
  // The embedded presets, sorted by name.
  static const PresetRegistry& Builtin();
  // Fails on a name that occurs twice.
  static Result<PresetRegistry> Create(std::vector<Preset> presets);

  const std::vector<Preset>& presets() const { return *presets_; }
  std::vector<std::string> Names() const;
  // kUsage with a suggestion and the list of names.
  Result<const Preset*> Find(std::string_view name) const;
  // The family whose block class and expert tensors fit; else the only one whose names fit; else nullopt.
  std::optional<FamilyMatch> MatchFamily(const BlockNames& names) const;

 private:
  PresetRegistry() = default;
  std::shared_ptr<const std::vector<Preset>> presets_;  // shared, so that pointers into it survive copies
};

// A word with a '/' or ending in .yaml or .yml is a path, not a family's name.
bool IsPresetPath(const std::string& word);
// A name or a path of a YAML file, as `--preset` takes it.
Result<std::shared_ptr<const Preset>> FindOrLoadPreset(const std::string& name_or_path);

// The layout of `preset` that the block's tensors follow, or null.
const ExpertLayout* MatchLayout(const Preset& preset, const BlockNames& names);

}  // namespace autoep

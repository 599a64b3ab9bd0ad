// SPDX-License-Identifier: Apache-2.0
// PresetRegistry: the embedded table, look-up by name, and matching by names.
#include "presets/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "plugin/io/text.h"
#include "presets/embedded.h"

namespace autoep {
namespace {

Result<PresetRegistry> LoadEmbedded() {
  std::vector<Preset> presets;
  for (int i = 0; i < kEmbeddedPresetCount; ++i) {
    const std::string_view text = kEmbeddedPresets[i].text;
    AUTOEP_ASSIGN_OR_RETURN(Preset preset, ParsePreset(text.substr(1), kEmbeddedPresets[i].file));
    presets.push_back(std::move(preset));
  }
  return PresetRegistry::Create(std::move(presets));
}

}  // namespace

bool IsPresetPath(const std::string& word) {
  return word.find('/') != std::string::npos || word.ends_with(".yaml") || word.ends_with(".yml");
}

const PresetRegistry& PresetRegistry::Builtin() {
  static const PresetRegistry registry = [] {
    auto loaded = LoadEmbedded();
    if (!loaded.ok()) {
      // A preset that is part of the build; the tests load them all.
      std::fprintf(stderr, "autoep: %s\n", loaded.status().message().c_str());
      std::abort();
    }
    return std::move(loaded).value();
  }();
  return registry;
}

Result<PresetRegistry> PresetRegistry::Create(std::vector<Preset> presets) {
  std::sort(presets.begin(), presets.end(), [](const Preset& a, const Preset& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(presets.begin(), presets.end(), [](const Preset& a, const Preset& b) { return a.name == b.name; });
  if (twice != presets.end()) {
    return Status(Code::kUsage,
                  fmt::format("{}: the family '{}' is also that of {}", std::next(twice)->origin, twice->name, twice->origin));
  }
  PresetRegistry registry;
  registry.presets_ = std::make_shared<const std::vector<Preset>>(std::move(presets));
  return registry;
}

std::vector<std::string> PresetRegistry::Names() const {
  std::vector<std::string> names;
  for (const Preset& preset : *presets_) names.push_back(preset.name);
  return names;
}

Result<const Preset*> PresetRegistry::Find(std::string_view name) const {
  for (const Preset& preset : *presets_) {
    if (preset.name == name) return &preset;
  }
  return Status(Code::kUsage, fmt::format("there is no preset '{}'{}; the presets are {}", Printable(name),
                                          DidYouMean(name, Names()), JoinWords(Names())));
}

const ExpertLayout* MatchLayout(const Preset& preset, const BlockNames& names) {
  for (const ExpertLayout& layout : preset.layouts) {
    const bool complete = std::all_of(layout.names.begin(), layout.names.end(), [&](const auto& name) {
      return std::any_of(names.tensors.begin(), names.tensors.end(),
                         [&](const std::string& tensor) { return layout.RoleOf(tensor) == name.first; });
    });
    if (complete) return &layout;
  }
  return nullptr;
}

std::optional<FamilyMatch> PresetRegistry::MatchFamily(const BlockNames& names) const {
  const std::string bare = BareClassName(names.class_name);
  std::vector<const Preset*> by_names;
  for (const Preset& preset : *presets_) {
    if (MatchLayout(preset, names) == nullptr) continue;
    if (preset.block.Matches(bare)) return FamilyMatch{&preset, true};
    const bool router = std::any_of(names.children.begin(), names.children.end(),
                                    [&](const std::string& child) { return preset.router.Matches(child); });
    if (router) by_names.push_back(&preset);
  }
  if (by_names.size() != 1) return std::nullopt;
  return FamilyMatch{by_names.front(), false};
}

Result<std::shared_ptr<const Preset>> FindOrLoadPreset(const std::string& name_or_path) {
  if (IsPresetPath(name_or_path)) {
    AUTOEP_ASSIGN_OR_RETURN(Preset preset, LoadPreset(name_or_path));
    return std::make_shared<const Preset>(std::move(preset));
  }
  AUTOEP_ASSIGN_OR_RETURN(const Preset* preset, PresetRegistry::Builtin().Find(name_or_path));
  return std::make_shared<const Preset>(*preset);
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// YAML -> CustomPreset.
#include "presets/custom_preset.h"

#include <fmt/format.h>

#include <algorithm>

#include "plugin/io/text.h"
#include "presets/registry.h"

namespace autoep {
namespace {

constexpr char kLayers[] = "moe_layer_pattern";

Result<std::string> ParseAttributeName(const YamlValue& value, const std::string& key) {
  AUTOEP_ASSIGN_OR_RETURN(std::string name, value.AsString());
  if (!name.empty() && name.find('.') == std::string::npos) return name;
  return value.Fail(fmt::format("{} is the name of one attribute, without dots; found '{}'", key, Printable(name)));
}

Result<Pattern> ParseLayerPattern(const YamlValue& value) {
  AUTOEP_ASSIGN_OR_RETURN(const std::string text, value.AsString());
  if (text.empty()) return value.Fail("moe_layer_pattern must match a module's path, and is empty");
  try {
    return Pattern{text, std::regex(text)};
  } catch (const std::regex_error& error) {
    return value.Fail(fmt::format("'{}' is not a regular expression: {}", Printable(text), error.what()));
  }
}

}  // namespace

const std::vector<std::string>& CustomPresetKeys() {
  static const std::vector<std::string> keys = {kLayers,     "router_pattern", "expert_pattern",   "expert_w1",
                                                "expert_w2", "expert_w3",      "num_experts_attr", "top_k_attr"};
  return keys;
}

Result<CustomPreset> ParseCustomKeys(const YamlValue& map) {
  CustomPreset preset;
  const std::map<std::string, std::optional<std::string> CustomPreset::*> names = {
      {"router_pattern", &CustomPreset::router_pattern}, {"expert_pattern", &CustomPreset::expert_pattern},
      {"expert_w1", &CustomPreset::expert_w1},           {"expert_w2", &CustomPreset::expert_w2},
      {"expert_w3", &CustomPreset::expert_w3},           {"num_experts_attr", &CustomPreset::num_experts_attr},
      {"top_k_attr", &CustomPreset::top_k_attr}};
  for (const std::string& key : CustomPresetKeys()) {
    if (!map.Has(key)) continue;
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At(key));
    if (value.IsNull()) continue;
    if (key == kLayers) {
      AUTOEP_ASSIGN_OR_RETURN(preset.moe_layer_pattern, ParseLayerPattern(value));
    } else {
      AUTOEP_ASSIGN_OR_RETURN(preset.*names.at(key), ParseAttributeName(value, key));
    }
    preset.places.emplace(key, value);
  }
  if (preset.expert_w1.has_value() != preset.expert_w2.has_value()) {
    return preset.Fail(preset.expert_w1 ? "expert_w1" : "expert_w2", "expert_w1 and expert_w2 are needed together");
  }
  if (preset.expert_w3 && !preset.expert_w1) return preset.Fail("expert_w3", "expert_w3 needs expert_w1 and expert_w2");
  return preset;
}

bool IsCustomPreset(const YamlValue& root) {
  const auto& keys = CustomPresetKeys();
  return !root.Has("block") && std::any_of(keys.begin(), keys.end(), [&](const std::string& key) { return root.Has(key); });
}

Result<CustomPreset> ParseCustomPreset(const YamlValue& root) {
  std::vector<std::string> keys = CustomPresetKeys();
  keys.push_back("name");
  AUTOEP_RETURN_IF_ERROR(root.CheckKeys(keys));
  AUTOEP_ASSIGN_OR_RETURN(CustomPreset preset, ParseCustomKeys(root));
  AUTOEP_ASSIGN_OR_RETURN(preset.name, root.StringOr("name", "custom"));
  if (!preset.moe_layer_pattern) return root.Fail("the key 'moe_layer_pattern' is missing");
  return preset;
}

Result<PresetChoice> ChoosePreset(const std::string& name_or_path) {
  PresetChoice choice;
  if (IsPresetPath(name_or_path)) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue root, YamlValue::Load(name_or_path));
    if (IsCustomPreset(root)) {
      AUTOEP_ASSIGN_OR_RETURN(CustomPreset custom, ParseCustomPreset(root));
      choice.custom = std::make_shared<const CustomPreset>(std::move(custom));
      return choice;
    }
  }
  AUTOEP_ASSIGN_OR_RETURN(choice.family, FindOrLoadPreset(name_or_path));
  return choice;
}

}  // namespace autoep

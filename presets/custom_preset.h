// SPDX-License-Identifier: Apache-2.0
// CustomPreset: which blocks of a model are MoE layers and how their parts are named, in the keys that AutoEP's users write
// (`moe_layer_pattern` and the rest). The graph proves what a block computes; these keys select blocks and must agree.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/status.h"
#include "presets/preset.h"
#include "presets/strict_yaml.h"

namespace autoep {

struct CustomPreset {
  std::string name;                                 // the layers' family; "" leaves it as it was found
  std::optional<Pattern> moe_layer_pattern;         // whole dotted path of a block; absent: every block found
  std::optional<std::string> router_pattern;        // child of the block that makes the logits
  std::optional<std::string> expert_pattern;        // child of the block that holds the experts
  std::optional<std::string> expert_w1, expert_w2;  // gate (or gate and up in one) and down
  std::optional<std::string> expert_w3;             // up; absent: w1 holds gate and up
  std::optional<std::string> num_experts_attr;      // whole-number attributes of a scripted block or of its router or experts
  std::optional<std::string> top_k_attr;
  std::map<std::string, YamlValue> places;  // where each key that is there stands, for messages

  // A failure at the place of `key`, one of those that are there.
  Status Fail(const std::string& key, std::string_view sentence) const { return places.at(key).Fail(sentence); }
};

// The keys that ParseCustomKeys reads.
const std::vector<std::string>& CustomPresetKeys();

// Reads those of its keys that `map` has; the caller checks the map for others. null means absent, as in AutoEP. kUsage with
// FILE:LINE:COL for a wrong type, a name that is empty or has a dot, or a bad regular expression.
Result<CustomPreset> ParseCustomKeys(const YamlValue& map);

// Whether the document is a custom preset rather than a family's: it has one of its keys and no `block`.
bool IsCustomPreset(const YamlValue& root);

// A whole file: CustomPresetKeys and `name` ("custom" by default), of which moe_layer_pattern must be there.
Result<CustomPreset> ParseCustomPreset(const YamlValue& root);

// What `--preset` can be given: a family by name or by its YAML file, or a custom preset's file. One of the two is set.
struct PresetChoice {
  std::shared_ptr<const Preset> family;
  std::shared_ptr<const CustomPreset> custom;
};
Result<PresetChoice> ChoosePreset(const std::string& name_or_path);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// YAML -> Preset.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "plugin/contract/activation.h"
#include "plugin/io/files.h"
#include "plugin/io/text.h"
#include "presets/preset.h"
#include "presets/strict_yaml.h"

namespace autoep {
namespace {

Result<Pattern> ParsePattern(const YamlValue& map, std::string_view key) {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At(key));
  AUTOEP_ASSIGN_OR_RETURN(const std::string text, value.AsString());
  try {
    return Pattern{text, std::regex(text)};
  } catch (const std::regex_error& error) {
    return value.Fail(fmt::format("'{}' is not a regular expression: {}", Printable(text), error.what()));
  }
}

constexpr std::array<ExpertRole, 4> kRoles = {ExpertRole::kGate, ExpertRole::kUp, ExpertRole::kGateUp, ExpertRole::kDown};

Result<ExpertLayout::Kind> ParseKind(const YamlValue& map) {
  static constexpr std::array<std::string_view, 3> kKinds = {"separate", "stacked", "flat"};
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At("layout"));
  AUTOEP_ASSIGN_OR_RETURN(const std::string word, value.AsString());
  const auto found = std::find(kKinds.begin(), kKinds.end(), word);
  if (found == kKinds.end()) {
    return value.Fail(fmt::format("expected separate, stacked or flat, found '{}'{}", Printable(word),
                                  DidYouMean(word, {kKinds.begin(), kKinds.end()})));
  }
  return static_cast<ExpertLayout::Kind>(found - kKinds.begin());
}

// How an expert's matrices are stored, where that is not [out, in] with all of gate before up.
Status ParseStorage(const YamlValue& map, ExpertLayout* layout) {
  if (map.Has("transposed")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue list, map.At("transposed"));
    AUTOEP_ASSIGN_OR_RETURN(const std::vector<std::string> words, map.StringsOr("transposed", {}));
    for (const std::string& word : words) {
      const auto named = std::find_if(layout->names.begin(), layout->names.end(),
                                      [&](const auto& name) { return ExpertRoleName(name.first) == word; });
      if (named == layout->names.end()) return list.Fail(fmt::format("'{}' is not one of the layout's tensors", Printable(word)));
      layout->transposed.push_back(named->first);
    }
  }
  if (map.Has("interleaved")) {
    AUTOEP_ASSIGN_OR_RETURN(layout->interleaved, map.Bool("interleaved"));
  }
  if (layout->interleaved && !map.Has("gate_up")) return map.Fail("only gate_up can be interleaved");
  return Status();
}

Result<ExpertLayout> ParseLayout(const YamlValue& map) {
  AUTOEP_RETURN_IF_ERROR(map.CheckKeys({"layout", "path", "gate", "up", "gate_up", "down", "transposed", "interleaved"}));
  ExpertLayout layout;
  AUTOEP_ASSIGN_OR_RETURN(layout.kind, ParseKind(map));
  AUTOEP_ASSIGN_OR_RETURN(layout.experts, ParsePattern(map, "path"));
  for (const ExpertRole role : kRoles) {
    if (!map.Has(ExpertRoleName(role))) continue;
    AUTOEP_ASSIGN_OR_RETURN(std::string name, map.String(ExpertRoleName(role)));
    for (const auto& [other, known] : layout.names) {
      if (known == name)
        return map.Fail(fmt::format("'{}' is both {} and {}", Printable(name), ExpertRoleName(other), ExpertRoleName(role)));
    }
    layout.names.emplace_back(role, std::move(name));
  }
  if (!map.Has("down")) return map.Fail("the key 'down' is missing");
  if (map.Has("gate_up") == map.Has("up") || (map.Has("gate_up") && map.Has("gate"))) {
    return map.Fail("expected gate_up and down; gate, up and down; or, without a gate, up and down");
  }
  AUTOEP_RETURN_IF_ERROR(ParseStorage(map, &layout));
  return layout;
}

Result<BlockFacts> ParseFacts(const YamlValue& map) {
  AUTOEP_RETURN_IF_ERROR(map.CheckKeys({"activation", "weights_act", "router"}));
  BlockFacts facts;
  AUTOEP_ASSIGN_OR_RETURN(facts.activation, map.StringOr("activation", ""));
  AUTOEP_ASSIGN_OR_RETURN(facts.weights_act, map.StringOr("weights_act", ""));
  if (!facts.activation.empty() && !contract::ParseActivation(facts.activation)) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At("activation"));
    return value.Fail(fmt::format("'{}' is not an activation that the experts op has", Printable(facts.activation)));
  }
  if (!facts.weights_act.empty() && facts.weights_act != "after" && facts.weights_act != "input") {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At("weights_act"));
    return value.Fail(fmt::format("expected after or input, found '{}'", Printable(facts.weights_act)));
  }
  if (!map.Has("router")) return facts;
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue router, map.At("router"));
  AUTOEP_ASSIGN_OR_RETURN(const auto members, router.AsMap());
  for (const auto& [key, member] : members) {
    AUTOEP_ASSIGN_OR_RETURN(const Json value, member.AsJson());
    if (value.is_structured() || value.is_null()) return member.Fail("expected a word, a number, true or false");
    facts.router[key] = value.is_string() ? value.get<std::string>() : value.dump();
  }
  return facts;
}

Result<PresetTest> ParseTest(const YamlValue& map) {
  AUTOEP_RETURN_IF_ERROR(map.CheckKeys({"model", "config_class", "transformers", "whole_model", "config"}));
  PresetTest test;
  AUTOEP_ASSIGN_OR_RETURN(test.model_class, map.String("model"));
  AUTOEP_ASSIGN_OR_RETURN(test.config_class, map.String("config_class"));
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue versions, map.At("transformers"));
  AUTOEP_ASSIGN_OR_RETURN(const auto elements, versions.AsList());
  for (const YamlValue& element : elements) {
    AUTOEP_ASSIGN_OR_RETURN(const int64_t version, element.AsInt(4, 99));
    test.transformers.push_back(version);
  }
  if (map.Has("whole_model")) {
    AUTOEP_ASSIGN_OR_RETURN(test.whole_model, map.Bool("whole_model"));
  }
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue config, map.At("config"));
  if (!config.IsMap()) return config.Fail("expected a map");
  AUTOEP_ASSIGN_OR_RETURN(test.config, config.AsJson());
  return test;
}

Result<std::string> ParseName(const YamlValue& map) {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, map.At("name"));
  AUTOEP_ASSIGN_OR_RETURN(std::string name, value.AsString());
  const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
  if (!plain) return value.Fail("a family's name has lower-case letters, digits and '_' only");
  return name;
}

// A gated activation needs a gate, and the other way round.
Status CheckGate(const YamlValue& root, const Preset& preset) {
  if (preset.facts.activation.empty()) return Status();
  const bool gated = contract::ParseActivation(preset.facts.activation)->gated;
  for (const ExpertLayout& layout : preset.layouts) {
    const bool has_gate = std::any_of(layout.names.begin(), layout.names.end(), [](const auto& name) {
      return name.first == ExpertRole::kGate || name.first == ExpertRole::kGateUp;
    });
    if (has_gate == gated) continue;
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue experts, root.At("experts"));
    return experts.Fail(fmt::format("the activation {} {} gate, and a layout {} one", preset.facts.activation,
                                    gated ? "needs a" : "has no", has_gate ? "has" : "lacks"));
  }
  return Status();
}

}  // namespace

Result<Preset> ParsePreset(std::string_view text, const std::string& origin) {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue root, YamlValue::Parse(text, origin));
  AUTOEP_RETURN_IF_ERROR(
      root.CheckKeys({"name", "title", "models", "block", "router", "shared_experts", "experts", "facts", "notes", "test"}));
  Preset preset;
  preset.text = text;
  preset.origin = origin;
  AUTOEP_ASSIGN_OR_RETURN(preset.name, ParseName(root));
  AUTOEP_ASSIGN_OR_RETURN(preset.title, root.StringOr("title", preset.name));
  AUTOEP_ASSIGN_OR_RETURN(preset.model_classes, root.StringsOr("models", {}));
  AUTOEP_ASSIGN_OR_RETURN(preset.block, ParsePattern(root, "block"));
  AUTOEP_ASSIGN_OR_RETURN(preset.router, ParsePattern(root, "router"));
  AUTOEP_ASSIGN_OR_RETURN(preset.shared_experts, root.StringsOr("shared_experts", {}));
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue experts, root.At("experts"));
  AUTOEP_ASSIGN_OR_RETURN(const auto layouts, experts.AsList());
  if (layouts.empty()) return experts.Fail("expected at least one layout");
  for (const YamlValue& layout : layouts) {
    AUTOEP_ASSIGN_OR_RETURN(ExpertLayout parsed, ParseLayout(layout));
    preset.layouts.push_back(std::move(parsed));
  }
  if (root.Has("facts")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue facts, root.At("facts"));
    AUTOEP_ASSIGN_OR_RETURN(preset.facts, ParseFacts(facts));
  }
  AUTOEP_RETURN_IF_ERROR(CheckGate(root, preset));
  AUTOEP_ASSIGN_OR_RETURN(preset.notes, root.StringsOr("notes", {}));
  if (root.Has("test")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue test, root.At("test"));
    AUTOEP_ASSIGN_OR_RETURN(preset.test, ParseTest(test));
  }
  return preset;
}

Result<Preset> LoadPreset(const std::string& path) {
  const auto text = ReadTextFile(path, 1 << 20);
  if (!text.ok()) return Status(Code::kUsage, text.status().message());
  return ParsePreset(*text, path);
}

}  // namespace autoep

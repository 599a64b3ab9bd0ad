// SPDX-License-Identifier: Apache-2.0
// The keys that choose something, and those that a saved graph has no place for.
#include "tools/ep_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "plugin/io/files.h"
#include "plugin/io/text.h"
#include "tools/layer_report.h"

namespace autoep {
namespace {

constexpr char kSection[] = "expert_parallel";
constexpr uint64_t kMaxBytes = 1 << 20;

// A key that is read by nothing: the values under which a saved graph does what it asks for, and why no other can be had.
struct Inapplicable {
  const char* key;
  std::vector<const char*> harmless;
  const char* reason;
};

const std::vector<Inapplicable>& InapplicableKeys() {
  static const std::vector<Inapplicable> keys = {
      {"expert_tensor_parallel_size", {"1"}, "an expert is not split over ranks"},
      {"validate_folding_routing", {"false"}, "tensor-parallel folding is not part of a saved graph"},
      {"combine_impl", {"auto", "weighted_sum"}, "autoep::combine is the weighted sum"},
      {"use_grouped_mm", {"true"}, "autoep::experts chooses its kernels by itself"},
      {"disable_triton_grouped_mm", {"true", "false"}, "there are no Triton kernels to leave out, and"},
      {"load_balance_coeff", {"null"}, "load balancing of the experts' bias is not supported; leave it out or set it to null"},
      {"comm_backend", {"comm"}, "rows are exchanged by the process group's all-to-all"},
      {"comm_num_sm", {}, "rows are exchanged by the process group's all-to-all"},
      {"comm_qp_margin", {}, "rows are exchanged by the process group's all-to-all"},
      {"comm_max_tokens_per_rank", {}, "rows are exchanged by the process group's all-to-all"},
      {"async_split_plan", {"false"}, "the counts are exchanged before the rows"},
  };
  return keys;
}

std::vector<std::string> SectionKeys() {
  std::vector<std::string> keys = {"enabled",
                                   "autoep_size",
                                   "preset_model",
                                   "top_k",
                                   "score_func",
                                   "score_apply",
                                   "route_norm",
                                   "route_scale",
                                   "routed_scaling_factor",
                                   "num_expert_groups",
                                   "num_limited_groups",
                                   "has_shared_experts",
                                   "shared_experts_pattern",
                                   "shared_experts_gate_pattern"};
  for (const std::string& key : CustomPresetKeys()) keys.push_back(key);
  for (const Inapplicable& each : InapplicableKeys()) keys.push_back(each.key);
  return keys;
}

// A scalar as it would be written in JSON, without a string's quotes.
Result<std::string> ScalarText(const YamlValue& value) {
  AUTOEP_ASSIGN_OR_RETURN(const Json json, value.AsJson());
  return json.is_string() ? json.get<std::string>() : json.dump();
}

Status CheckInapplicable(const YamlValue& section) {
  for (const Inapplicable& each : InapplicableKeys()) {
    if (!section.Has(each.key)) continue;
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At(each.key));
    AUTOEP_ASSIGN_OR_RETURN(const std::string text, ScalarText(value));
    if (std::find(each.harmless.begin(), each.harmless.end(), text) != each.harmless.end()) continue;
    return value.Fail(fmt::format("{} cannot be {} in a saved graph: {}", each.key, Printable(text), each.reason));
  }
  return Status();
}

// Tabs, which JSON may be indented with and YAML may not. A JSON string holds none.
std::string WithoutTabs(std::string text) {
  std::replace(text.begin(), text.end(), '\t', ' ');
  return text;
}

}  // namespace

Result<EpConfig> EpConfig::Load(const std::string& path) {
  auto text = ReadTextFile(path, kMaxBytes);
  if (!text.ok()) return Status(Code::kUsage, text.status().message());
  return Parse(path.ends_with(".json") ? WithoutTabs(*std::move(text)) : *text, path);
}

Result<EpConfig> EpConfig::Parse(std::string_view text, const std::string& file) {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue root, YamlValue::Parse(text, file));
  AUTOEP_ASSIGN_OR_RETURN(const auto members, root.AsMap());
  if (!root.Has(kSection)) {
    std::string guess;
    for (const auto& [key, value] : members) guess = guess.empty() ? DidYouMean(key, {kSection}) : guess;
    return root.Fail(fmt::format("the section '{}' is missing{}", kSection, guess));
  }
  if (root.Has("use_data_before_expert_parallelism")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue order, root.At("use_data_before_expert_parallelism"));
    AUTOEP_ASSIGN_OR_RETURN(const bool data_first, order.AsBool());
    if (data_first) return order.Fail("a saved graph knows no order of ranks: give autoep.load a group of your own");
  }
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue section, root.At(kSection));
  EpConfig config;
  AUTOEP_RETURN_IF_ERROR(config.Read(section));
  return config;
}

Status EpConfig::Read(const YamlValue& section) {
  AUTOEP_RETURN_IF_ERROR(section.CheckKeys(SectionKeys()));
  AUTOEP_RETURN_IF_ERROR(ReadChoices(section));
  AUTOEP_RETURN_IF_ERROR(CheckInapplicable(section));
  return ReadClaims(section);
}

Status EpConfig::ReadChoices(const YamlValue& section) {
  if (section.Has("enabled")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("enabled"));
    AUTOEP_ASSIGN_OR_RETURN(const bool enabled, value.AsBool());
    if (!enabled) return value.Fail("expert_parallel is switched off here; convert has nothing else to do");
  }
  if (section.Has("autoep_size")) {
    AUTOEP_ASSIGN_OR_RETURN(ep_size_, section.Int("autoep_size", 1, std::numeric_limits<int64_t>::max()));
  }
  if (section.Has("preset_model")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("preset_model"));
    if (!value.IsNull()) {
      AUTOEP_ASSIGN_OR_RETURN(preset_model_, value.AsString());
    }
  }
  AUTOEP_ASSIGN_OR_RETURN(blocks_, ParseCustomKeys(section));
  return Status();
}

}  // namespace autoep

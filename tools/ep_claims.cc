// SPDX-License-Identifier: Apache-2.0
// The keys that describe the model, and the graph's word against them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "passes/model/modules.h"
#include "plugin/io/text.h"
#include "tools/ep_config.h"
#include "tools/layer_report.h"

namespace autoep {
namespace {

using torch::jit::Module;
using Difference = std::optional<std::string>;

std::string Fact(const MoeLayer& layer, const std::string& key, const std::string& missing) {
  const auto found = layer.router.find(key);
  return found == layer.router.end() ? missing : found->second;
}

// AutoEP has no word for a softmax over the chosen alone; it is a softmax.
std::string ScoreOf(const MoeLayer& layer) {
  const std::string scores = Fact(layer, "scores", "none");
  return scores == "none" && Fact(layer, "renorm", "false") == "softmax" ? "softmax" : scores;
}

Difference Differs(const std::string& found, const std::string& said) { return found == said ? Difference() : Difference(found); }

bool SaysNothing(const YamlValue& value) {
  const auto text = value.AsString();
  return value.IsNull() || (text.ok() && *text == "auto");
}

// One of `words`, with a did-you-mean.
Result<std::string> ParseWord(const YamlValue& value, const std::vector<std::string>& words) {
  AUTOEP_ASSIGN_OR_RETURN(std::string word, value.AsString());
  if (std::find(words.begin(), words.end(), word) != words.end()) return word;
  return value.Fail(fmt::format("expected {}, found '{}'{}", JoinWords(words), Printable(word), DidYouMean(word, words)));
}

// Children that hold shared experts, as the graph shows them: "shared_expert" of "shared_expert.up_proj".
bool HoldsShared(const MoeLayer& layer, const std::string& child) {
  return std::any_of(layer.shared_experts.begin(), layer.shared_experts.end(),
                     [&](const std::string& path) { return path.substr(0, path.find('.')) == child; });
}

}  // namespace

Status EpConfig::CheckLayers(const Module& root, const std::vector<MoeLayer>& layers) const {
  for (const Claim& claim : claims_) {
    for (const MoeLayer& layer : layers) {
      const Difference found = claim.differs(*FindModule(root, layer.path), layer);
      if (found) {
        return claim.place.Fail(
            fmt::format("{} contradicts the graph of {}, which shows {}", claim.key, PathName(layer.path), *found));
      }
    }
  }
  return Status();
}

Status EpConfig::ReadClaims(const YamlValue& section) {
  if (section.Has("top_k")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("top_k"));
    if (!SaysNothing(value)) {
      AUTOEP_ASSIGN_OR_RETURN(const int64_t top_k, value.AsInt(1, INT64_MAX));
      claims_.push_back({"top_k", value, [top_k](const Module&, const MoeLayer& layer) {
                           return Differs(fmt::to_string(layer.top_k), fmt::to_string(top_k));
                         }});
    }
  }
  if (section.Has("score_apply")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("score_apply"));
    AUTOEP_ASSIGN_OR_RETURN(const std::string word, ParseWord(value, {"auto", "pre", "post"}));
    if (word != "auto") {
      claims_.push_back({"score_apply", value, [word](const Module&, const MoeLayer& layer) {
                           return Differs(layer.weights_on_input ? "pre" : "post", word);
                         }});
    }
  }
  AUTOEP_RETURN_IF_ERROR(ReadRouterClaims(section));
  return ReadSharedClaims(section);
}

Status EpConfig::ReadRouterClaims(const YamlValue& section) {
  if (section.Has("score_func")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("score_func"));
    AUTOEP_ASSIGN_OR_RETURN(const std::string word, ParseWord(value, {"auto", "softmax", "sigmoid"}));
    if (word != "auto") {
      claims_.push_back(
          {"score_func", value, [word](const Module&, const MoeLayer& layer) { return Differs(ScoreOf(layer), word); }});
    }
  }
  if (section.Has("route_norm")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("route_norm"));
    if (!value.IsNull()) {
      AUTOEP_ASSIGN_OR_RETURN(const bool norm, value.AsBool());
      claims_.push_back({"route_norm", value, [norm](const Module&, const MoeLayer& layer) {
                           return Differs(Fact(layer, "renorm", "false") == "false" ? "false" : "true", norm ? "true" : "false");
                         }});
    }
  }
  // AutoEP's default of route_scale is 1, and means that the model's own scale holds.
  for (const char* key : {"route_scale", "routed_scaling_factor"}) {
    if (!section.Has(key)) continue;
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At(key));
    if (SaysNothing(value)) continue;
    AUTOEP_ASSIGN_OR_RETURN(const double scale, value.AsNumber());
    if (std::string_view(key) == "route_scale" && scale == 1) continue;
    claims_.push_back({key, value, [scale](const Module&, const MoeLayer& layer) {
                         const std::string found = Fact(layer, "scale", "1");
                         return std::fabs(std::stod(found) - scale) <= 1e-6 * std::fabs(scale) ? Difference() : Difference(found);
                       }});
  }
  for (const auto& [key, fact] : {std::pair("num_expert_groups", "num_groups"), std::pair("num_limited_groups", "top_groups")}) {
    if (!section.Has(key)) continue;
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At(key));
    if (value.IsNull()) continue;
    AUTOEP_ASSIGN_OR_RETURN(const int64_t groups, value.AsInt(1, INT64_MAX));
    claims_.push_back({key, value, [groups, fact = std::string(fact)](const Module&, const MoeLayer& layer) {
                         const bool limited = Fact(layer, "groups", "false") == "true";
                         return Differs(Fact(layer, fact, limited ? "groups of a number that is not constant" : "1"),
                                        fmt::to_string(groups));
                       }});
  }
  return Status();
}

Status EpConfig::ReadSharedClaims(const YamlValue& section) {
  if (section.Has("has_shared_experts")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("has_shared_experts"));
    if (!value.IsNull()) {
      AUTOEP_ASSIGN_OR_RETURN(const bool shared, value.AsBool());
      claims_.push_back({"has_shared_experts", value, [shared](const Module&, const MoeLayer& layer) -> Difference {
                           if (layer.shared_experts.empty() != shared) return std::nullopt;
                           return shared ? "no shared experts" : "shared experts in " + JoinWords(layer.shared_experts);
                         }});
    }
  }
  if (section.Has("shared_experts_pattern")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("shared_experts_pattern"));
    if (!value.IsNull()) {
      AUTOEP_ASSIGN_OR_RETURN(const std::string child, value.AsString());
      claims_.push_back({"shared_experts_pattern", value, [child](const Module&, const MoeLayer& layer) -> Difference {
                           if (HoldsShared(layer, child)) return std::nullopt;
                           return layer.shared_experts.empty() ? "no shared experts"
                                                               : "shared experts in " + JoinWords(layer.shared_experts);
                         }});
    }
  }
  if (section.Has("shared_experts_gate_pattern")) {
    AUTOEP_ASSIGN_OR_RETURN(const YamlValue value, section.At("shared_experts_gate_pattern"));
    if (!value.IsNull()) {
      AUTOEP_ASSIGN_OR_RETURN(const std::string child, value.AsString());
      claims_.push_back({"shared_experts_gate_pattern", value, [child](const Module& block, const MoeLayer&) -> Difference {
                           return block.hasattr(child) ? Difference() : Difference("no child of that name");
                         }});
    }
  }
  return Status();
}

}  // namespace autoep

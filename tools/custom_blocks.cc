// SPDX-License-Identifier: Apache-2.0
// Selection by path, then names, role by role.
#include "tools/custom_blocks.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "plugin/io/text.h"
#include "tools/layer_report.h"

namespace autoep {
namespace {

using torch::jit::Module;

// "model.layers.0.mlp.experts.3.w1.weight" -> "w1"; "..experts.down_proj_bias" -> "down_proj"
std::string BaseName(std::string tensor) {
  for (const std::string_view suffix : {".weight", ".bias", "_bias"}) {
    if (tensor.ends_with(suffix)) tensor.resize(tensor.size() - suffix.size());
  }
  return tensor.substr(tensor.rfind('.') + 1);
}

// A whole number that the module keeps under this name, as an attribute or as a constant of its class.
std::optional<int64_t> FindNumber(const Module& module, const std::string& name) {
  if (module.hasattr(name) && module.attr(name).isInt()) return module.attr(name).toInt();
  const auto type = module.type();
  if (!type->hasConstant(name) || !type->getConstant(name).isInt()) return std::nullopt;
  return type->getConstant(name).toInt();
}

class LayerCheck {
 public:
  LayerCheck(const Module& block, const MoeLayer& layer, const CustomPreset& preset)
      : block_(block), layer_(layer), preset_(preset), where_(PathName(layer.path)) {}

  Status Run() const {
    AUTOEP_RETURN_IF_ERROR(CheckChild("router_pattern", preset_.router_pattern));
    AUTOEP_RETURN_IF_ERROR(CheckChild("expert_pattern", preset_.expert_pattern));
    for (const ExpertTensor& tensor : layer_.tensors) {
      for (const contract::SourcePart& part : tensor.parts) AUTOEP_RETURN_IF_ERROR(CheckPart(tensor, part));
    }
    AUTOEP_RETURN_IF_ERROR(CheckNumber("num_experts_attr", preset_.num_experts_attr, layer_.num_experts, "experts"));
    return CheckNumber("top_k_attr", preset_.top_k_attr, layer_.top_k, "experts a token");
  }

 private:
  std::vector<std::string> Children() const {
    std::vector<std::string> names;
    for (const auto& child : block_.named_children()) names.push_back(child.name);
    return names;
  }

  Status CheckChild(const std::string& key, const std::optional<std::string>& name) const {
    if (!name || block_.hasattr(*name)) return Status();
    return preset_.Fail(key, fmt::format("{} has no child '{}'{}", where_, Printable(*name), DidYouMean(*name, Children())));
  }

  Status CheckPart(const ExpertTensor& tensor, const contract::SourcePart& part) const {
    const std::string path = layer_.path.empty() ? "" : layer_.path + ".";
    if (preset_.expert_pattern && !part.tensor.starts_with(path + *preset_.expert_pattern + ".")) {
      return preset_.Fail("expert_pattern",
                          fmt::format("the graph of {} takes its experts from {}", where_, Printable(part.tensor)));
    }
    if (!preset_.expert_w1) return Status();
    const auto [key, wanted] = Expected(tensor, part);
    const std::string found = BaseName(part.tensor);
    if (found == *wanted) return Status();
    return preset_.Fail(key, fmt::format("the graph of {} uses {} as {}", where_, Printable(part.tensor), RoleOf(tensor, part)));
  }

  bool IsDown(const ExpertTensor& tensor) const { return tensor.role.starts_with("down"); }
  bool IsUpHalf(const ExpertTensor& tensor, const contract::SourcePart& part) const {
    return tensor.role.starts_with("gate_up") && part.row_begin >= layer_.intermediate;
  }

  std::pair<std::string, const std::string*> Expected(const ExpertTensor& tensor, const contract::SourcePart& part) const {
    if (IsDown(tensor)) return {"expert_w2", &*preset_.expert_w2};
    if (preset_.expert_w3 && IsUpHalf(tensor, part)) return {"expert_w3", &*preset_.expert_w3};
    return {"expert_w1", &*preset_.expert_w1};
  }

  std::string RoleOf(const ExpertTensor& tensor, const contract::SourcePart& part) const {
    if (IsDown(tensor)) return "down";
    if (IsUpHalf(tensor, part) || tensor.role.starts_with("up")) return "up";
    return part.row_count > layer_.intermediate ? "gate and up" : "gate";
  }

  Status CheckNumber(const std::string& key, const std::optional<std::string>& name, int64_t expected, const char* what) const {
    if (!name) return Status();
    std::vector<Module> holders = {block_};
    for (const auto& child : block_.named_children()) holders.push_back(child.value);
    for (const Module& holder : holders) {
      const auto number = FindNumber(holder, *name);
      if (!number) continue;
      if (*number == expected) return Status();
      return preset_.Fail(
          key, fmt::format("'{}' of {} is {}, and its graph has {} {}", Printable(*name), where_, *number, expected, what));
    }
    return preset_.Fail(key,
                        fmt::format("{} keeps no whole number '{}', as a traced module never does: leave the key out, the graph "
                                    "shows {} {}",
                                    where_, Printable(*name), expected, what));
  }

  const Module& block_;
  const MoeLayer& layer_;
  const CustomPreset& preset_;
  const std::string where_;
};

// A module that the pattern selects and that has a router and experts by name, but is none of the layers.
std::optional<std::string> FindMissed(const Module& root, const Detection& detection, const CustomPreset& preset) {
  const std::string router = preset.router_pattern.value_or("gate");
  const std::string experts = preset.expert_pattern.value_or("experts");
  for (const auto& named : root.named_modules()) {
    if (!preset.moe_layer_pattern->Matches(named.name) || !named.value.hasattr(router) || !named.value.hasattr(experts)) continue;
    const bool found = std::any_of(detection.layers.begin(), detection.layers.end(),
                                   [&](const MoeLayer& layer) { return layer.path == named.name; });
    if (!found) return named.name;
  }
  return std::nullopt;
}

std::string ReasonFor(const std::string& path, const Detection& detection) {
  for (const Refusal& refusal : detection.refusals) {
    if (refusal.path == path || refusal.path.starts_with(path + ".")) return RefusalSentence(refusal);
  }
  return "its graph holds no experts of a known form";
}

}  // namespace

Result<Detection> SelectBlocks(const Module& root, Detection detection, const CustomPreset& preset) {
  if (preset.moe_layer_pattern) {
    if (const auto missed = FindMissed(root, detection, preset)) {
      return Status(Code::kNoMoe, fmt::format("{} matches moe_layer_pattern and cannot be rewritten: {}", PathName(*missed),
                                              ReasonFor(*missed, detection)));
    }
  }
  Detection selected;
  std::vector<std::string> found;
  selected.refusals = std::move(detection.refusals);
  for (MoeLayer& layer : detection.layers) {
    found.push_back(PathName(layer.path));
    if (preset.moe_layer_pattern && !preset.moe_layer_pattern->Matches(layer.path)) {
      selected.refusals.push_back({layer.path, "moe_layer_pattern must match the module's path", "", "", ""});
      continue;
    }
    const auto block = FindModule(root, layer.path);
    AUTOEP_RETURN_IF_ERROR(LayerCheck(*block, layer, preset).Run());
    if (!preset.name.empty()) layer.family = preset.name;
    selected.layers.push_back(std::move(layer));
  }
  if (!selected.layers.empty()) return selected;
  return Status(Code::kNoMoe, fmt::format("moe_layer_pattern '{}' matches no MoE block; the blocks found are {}",
                                          Printable(preset.moe_layer_pattern->text), JoinWords(found)));
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// --config: the `expert_parallel` section of a YAML file or of a DeepSpeed JSON config, in AutoEP's keys. What chooses
// something is taken; what describes the model must be what the graph proves; what a saved graph has no place for is refused.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "passes/detect/moe_layer.h"
#include "plugin/io/status.h"
#include "presets/custom_preset.h"
#include "presets/strict_yaml.h"

namespace autoep {

class EpConfig {
 public:
  // Every failure is kUsage and begins with FILE:LINE:COL. Sections of a DeepSpeed config other than expert_parallel are
  // DeepSpeed's own and are not read.
  static Result<EpConfig> Load(const std::string& path);
  static Result<EpConfig> Parse(std::string_view text, const std::string& file);

  const std::optional<int64_t>& ep_size() const { return ep_size_; }  // autoep_size
  const std::optional<std::string>& preset_model() const { return preset_model_; }
  const CustomPreset& blocks() const { return blocks_; }  // moe_layer_pattern to top_k_attr

  // kUsage at the place of a key that says something else of a layer than its graph proves.
  Status CheckLayers(const torch::jit::Module& root, const std::vector<MoeLayer>& layers) const;

 private:
  // What a key says about every layer. `differs` tells what the graph shows instead; nothing where they agree.
  struct Claim {
    std::string key;
    YamlValue place;
    std::function<std::optional<std::string>(const torch::jit::Module& block, const MoeLayer& layer)> differs;
  };

  Status Read(const YamlValue& section);
  Status ReadChoices(const YamlValue& section);
  Status ReadClaims(const YamlValue& section);
  Status ReadRouterClaims(const YamlValue& section);
  Status ReadSharedClaims(const YamlValue& section);

  std::optional<int64_t> ep_size_;
  std::optional<std::string> preset_model_;
  CustomPreset blocks_;
  std::vector<Claim> claims_;
};

}  // namespace autoep

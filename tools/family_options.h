// SPDX-License-Identifier: Apache-2.0
// The options of convert that say what the model must be: --preset and --config, of which --preset wins.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "passes/detect/moe_layer.h"
#include "passes/model/moe_model.h"
#include "plugin/io/status.h"
#include "presets/custom_preset.h"
#include "tools/ep_config.h"

namespace autoep {

class FamilyOptions {
 public:
  void Declare(CLI::App& app);

  // Reads the files (kUsage). Call it before the rest.
  Status Resolve();
  // autoep_size of --config.
  std::optional<int64_t> ep_size() const { return config_ ? config_->ep_size() : std::nullopt; }
  // The layers to rewrite, at least one. kNoMoe, or kUsage where preset or config contradict the graph. `path` is the model's,
  // for messages.
  Result<Detection> Detect(const std::string& path, const MoeModel& model) const;

 private:
  Status CheckFamily(const MoeLayer& layer) const;

  std::string preset_;
  std::string config_path_;
  PresetChoice wanted_;
  std::optional<EpConfig> config_;
};

}  // namespace autoep

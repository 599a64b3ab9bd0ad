// SPDX-License-Identifier: Apache-2.0
// From options to a checked detection.
#include "tools/family_options.h"

#include <fmt/format.h>

#include "passes/detect/detect.h"
#include "plugin/io/text.h"
#include "presets/registry.h"
#include "tools/custom_blocks.h"
#include "tools/layer_report.h"

namespace autoep {

void FamilyOptions::Declare(CLI::App& app) {
  app.add_option("--preset", preset_, "The family that the model must be: a name, or a YAML file of a family or of AutoEP's keys")
      ->type_name("NAME|FILE");
  app.add_option("--config", config_path_, "A YAML file or DeepSpeed config whose expert_parallel section holds; options win")
      ->type_name("FILE");
}

Status FamilyOptions::Resolve() {
  if (!config_path_.empty()) {
    AUTOEP_ASSIGN_OR_RETURN(config_, EpConfig::Load(config_path_));
  }
  if (!preset_.empty()) {
    AUTOEP_ASSIGN_OR_RETURN(wanted_, ChoosePreset(preset_));
  } else if (config_ && config_->preset_model()) {
    AUTOEP_ASSIGN_OR_RETURN(wanted_.family, FindOrLoadPreset(*config_->preset_model()));
  }
  return Status();
}

Result<Detection> FamilyOptions::Detect(const std::string& path, const MoeModel& model) const {
  DetectOptions options;
  options.preset = wanted_.family.get();
  Detection detection = autoep::Detect(model.module, options);
  if (detection.layers.empty()) return NoLayersError(path, detection.refusals);
  for (const MoeLayer& layer : detection.layers) AUTOEP_RETURN_IF_ERROR(CheckFamily(layer));
  if (wanted_.custom) {
    AUTOEP_ASSIGN_OR_RETURN(detection, SelectBlocks(model.module, std::move(detection), *wanted_.custom));
  } else if (config_) {
    AUTOEP_ASSIGN_OR_RETURN(detection, SelectBlocks(model.module, std::move(detection), config_->blocks()));
  }
  if (config_) AUTOEP_RETURN_IF_ERROR(config_->CheckLayers(model.module, detection.layers));
  return detection;
}

// A preset may name a block that no family knows, but not one that is another family's.
Status FamilyOptions::CheckFamily(const MoeLayer& layer) const {
  if (!wanted_.family) return Status();
  for (const Preset& preset : PresetRegistry::Builtin().presets()) {
    if (preset.name == wanted_.family->name || !preset.block.Matches(layer.class_name)) continue;
    return Status(Code::kNoMoe, fmt::format("--preset {}: {} is a {}, which is of family {}; name that one, or leave --preset out",
                                            Printable(wanted_.family->name), Printable(PathName(layer.path)),
                                            Printable(layer.class_name), preset.name));
  }
  return Status();
}

}  // namespace autoep

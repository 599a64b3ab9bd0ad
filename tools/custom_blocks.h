// SPDX-License-Identifier: Apache-2.0
// Applies a custom preset to what was detected: selects the blocks that it names, and holds its names against the graph's.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include "passes/detect/moe_layer.h"
#include "plugin/io/status.h"
#include "presets/custom_preset.h"

namespace autoep {

// The layers that the preset selects, its name their family; the others become refusals. kUsage, with the key's place, where a
// name is not what the graph shows; kNoMoe where nothing is selected, or a module with a router and experts is and was not
// detected.
Result<Detection> SelectBlocks(const torch::jit::Module& root, Detection detection, const CustomPreset& preset);

}  // namespace autoep

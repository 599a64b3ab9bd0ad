// SPDX-License-Identifier: Apache-2.0
// What names add to a matched block: its class, its family, the modules that only its experts used.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <optional>

#include "passes/detect/detect.h"
#include "passes/detect/moe_layer.h"

namespace autoep {

// The outermost modules below `self` all of whose tensors are `layer`'s: paths relative to `self`, which has `path`.
std::vector<std::string> FindConsumedModules(const torch::jit::Module& self, const std::string& path, const MoeLayer& layer);

// Sets class_name and family, and what the family says of a capacity that may be the trace's example's: the layer is then rebuilt
// without it (MoeLayer::rebuilt). Fails where no family says that, and where the family's facts, or the roles and the storing of
// its tensors, and the graph disagree, naming each difference.
std::optional<Miss> NameLayer(const torch::jit::Module& self, const DetectOptions& options, MoeLayer& layer);

}  // namespace autoep

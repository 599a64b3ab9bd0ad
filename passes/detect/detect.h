// SPDX-License-Identifier: Apache-2.0
// Detect: every MoE block of a model, or the reasons why there is none.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include "passes/detect/moe_layer.h"

namespace autoep {

struct Preset;

struct DetectOptions {
  const Preset* preset = nullptr;  // the family that every block must be of; null: each block's names decide
};

// Changes nothing in `model` and reads no weight. A block is the lowest module whose forward holds router and experts; only
// modules that may be one are inlined. A model without a top-k has neither layers nor refusals.
Detection Detect(const torch::jit::Module& model, const DetectOptions& options = {});

}  // namespace autoep

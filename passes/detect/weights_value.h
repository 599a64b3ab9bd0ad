// SPDX-License-Identifier: Apache-2.0
// Which value is the choices' weights: the last one that everything the experts' sum takes from the router passes through.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <vector>

#include "passes/detect/flow.h"
#include "passes/detect/region.h"
#include "passes/detect/router.h"

namespace autoep {

// Values through which all of `out`, as read after step `at`, depends on the router's logits, other than by `choice` (ids or a
// mask; may be null); the last in the graph first. `steps` is the closure of `out` down to the gate.
std::vector<torch::jit::Value*> FindWeightsCandidates(torch::jit::Value* out, int at, const Router& router,
                                                      const torch::jit::Value* choice, const GraphFlow& flow,
                                                      const ExpertUnits& units, const std::set<int>& steps);

}  // namespace autoep

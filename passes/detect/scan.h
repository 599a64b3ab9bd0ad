// SPDX-License-Identifier: Apache-2.0
// Scan: from a router down the graph to the points where all that depends on both its choice and experts' outputs has
// become one value: the places where the weighted sum can be.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <vector>

#include "passes/detect/flow.h"
#include "passes/detect/region.h"
#include "passes/detect/router.h"

namespace autoep {

struct SumCandidate {
  torch::jit::Value* value = nullptr;  // as read after `step`
  int step = 0;
  std::vector<int> units;  // whose outputs came together in it; others' may be among them
};

struct ScanResult {
  bool met_experts = false;             // some value depended on both
  torch::jit::Node* stop = nullptr;     // the node that ended the scan: not explained, with such a value as input
  torch::jit::Node* unknown = nullptr;  // the first product that reads what was chosen and is no expert's
  int units = 0;                        // most units that came together
};

// Calls `take` with each candidate in order until it returns true. Linear in the steps scanned; ends when nothing that
// depends on the choice is read any more. A sum of units that are one expert each has at least `least_units`.
ScanResult ScanForSum(const Router& router, const GraphFlow& flow, const ExpertUnits& units, int64_t least_units,
                      const std::function<bool(const SumCandidate&)>& take);

}  // namespace autoep

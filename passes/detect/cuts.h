// SPDX-License-Identifier: Apache-2.0
// Cuts: the values at which a router ends and the experts' sum begins, in the ways in which routers hand over their choice.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <vector>

#include "passes/detect/match.h"
#include "passes/detect/row_shape.h"
#include "passes/detect/scan.h"

namespace autoep {

struct Cut {
  Routing routing = Routing::kPairs;
  torch::jit::Value* choice = nullptr;  // ids [.., k], or a mask [.., E]; null for a table of weights
  torch::jit::Value* weights = nullptr;
  RowShape choice_rows, weights_rows;
  at::ScalarType choice_dtype = at::kLong;
  at::ScalarType weights_dtype = at::kFloat;
  int64_t top_k = 0;                    // most choices of a token
  torch::jit::Value* ids = nullptr;     // for a table or mask: where its entries are, if one value says it
};

// `steps` is the closure of the candidate down to the gate; `shapes` were seen with `seen`. The likeliest first.
std::vector<Cut> FindCuts(const SumCandidate& candidate, const Router& router, const GraphFlow& flow, const ExpertUnits& units,
                          const std::set<int>& steps, const ShapeTable& shapes, const Tokens& seen);

}  // namespace autoep

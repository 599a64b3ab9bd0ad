// SPDX-License-Identifier: Apache-2.0
// MatchGather: rows of a stacked tensor picked by expert ids.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <optional>

#include "passes/detect/weight.h"

namespace autoep {

struct Gathered {
  Weight weight;
  torch::jit::Value* ids = nullptr;
};

// index(W, [ids]) or index_select(W, 0, ids), and a swap of the last two dimensions after it.
std::optional<Gathered> MatchGather(torch::jit::Value* value, const WeightFinder& weights);

}  // namespace autoep

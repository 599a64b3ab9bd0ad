// SPDX-License-Identifier: Apache-2.0
// Whether a router's constant capacity can be the number of tokens of the trace's example: what drops no token of so many, whatever
// they choose, and does of more.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <vector>

#include "passes/detect/proof.h"

namespace autoep {

// Runs the router's `tests` of a count (router.h), from made-up logits on, of as many tokens as they say and of one more, all of
// which have the same two best experts. `logits_rank` is that of the gate's product.
bool CountsTokens(const Stage& stage, const GraphFlow& flow, const std::vector<torch::jit::Node*>& tests, size_t logits_rank);

}  // namespace autoep

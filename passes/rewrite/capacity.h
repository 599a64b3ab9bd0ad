// SPDX-License-Identifier: Apache-2.0
// A router's capacity that was the trace's example's, and is the number of tokens.
#pragma once

#include "passes/detect/match.h"

namespace autoep {

// Where `layer`, as it was named, has such a capacity (its router's "capacity" is "tokens"), the tests of `match` let every count
// pass: no expert gets more tokens than there are.
void LiftCapacity(torch::jit::Graph& graph, const BlockMatch& match, const MoeLayer& layer);

}  // namespace autoep

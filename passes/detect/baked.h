// SPDX-License-Identifier: Apache-2.0
// Baked blocks: a loop over experts that a trace unrolled over those that its example chose. The file itself is wrong for
// other inputs, but still carries all experts' weights. A block is rebuilt where its graph is proved to compute the sum over
// the chosen experts for every choice that it can serve, and the other experts are like those that it holds.
#pragma once

#include <optional>

#include "passes/detect/claim.h"

namespace autoep {

// The first node that says the graph was unrolled over the experts of an example: %hit = aten::unbind(aten::nonzero(..));
// prim::ListUnpack(%hit). Null if there is none.
torch::jit::Node* FindBakedHits(const Router& router, const GraphFlow& flow);

// The rebuilt block, or why a baked one cannot be rebuilt; nullopt where nothing says that the block is baked. `hits` is what
// FindBakedHits found for the gate.
std::optional<ClaimResult> RebuildBaked(const MatchContext& context, const Router& router, const torch::jit::Node* hits);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// From a place where the weighted sum may be, to a proved BlockMatch.
#pragma once

#include "passes/detect/match.h"
#include "passes/detect/proof_memory.h"
#include "passes/detect/scan.h"
#include "passes/detect/served.h"
#include "passes/detect/siblings.h"

namespace autoep {

struct MatchContext {
  torch::jit::Graph* graph = nullptr;
  const torch::jit::Module* self = nullptr;
  std::string path;
  const GraphFlow* flow = nullptr;
  const WeightFinder* weights = nullptr;
  const ExpertUnits* units = nullptr;
  const Proofs* proofs = nullptr;
};

// The proved block, or the reason why `candidate` is not its sum.
struct ClaimResult {
  std::optional<BlockMatch> match;
  Miss refusal;
  bool proved = false;  // the sum is the experts'; the refusal says what else is wrong
  bool far = false;  // the value has not the tokens' shape: a later candidate may
  std::vector<int64_t> shown_identity;  // of a rebuilt block's experts that answer the token itself, those that the graph holds
};

// What a baked loop can serve, and all experts of its block.
struct Rebuilding {
  const ServedExperts* served = nullptr;
  const AllExperts* all = nullptr;
};

// With `rebuilding`, the claim is proved for the choices that the loop can serve, and the layer has all experts.
ClaimResult ProveCandidate(const MatchContext& context, const Router& router, const SumCandidate& candidate,
                           const Rebuilding* rebuilding = nullptr);

// Fills everything of the layer but path, class and family from the units in expert order. Fails with a refusal where the
// experts' tensors differ in shape, dtype or requires_grad, or a stacked tensor is not used in its own order.
std::optional<Miss> FillLayer(const MatchContext& context, const Router& router, const std::vector<const ExpertFfn*>& experts,
                              MoeLayer& layer);

}  // namespace autoep

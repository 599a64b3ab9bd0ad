// SPDX-License-Identifier: Apache-2.0
// MatchBlocks: each top-k of a graph, its router, the scan for the experts' sum, and the proof.
#include "passes/detect/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "passes/detect/baked.h"
#include "passes/detect/claim.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

constexpr int kMostCandidates = 64;  // a block has a few values on its way that are no sum yet

Refusal DescribeMiss(const MatchContext& context, const Router& router, const ScanResult& scan) {
  if (Node* hits = FindBakedHits(router, *context.flow)) {
    return Refuse(context.path,
                  "baked: the trace holds the experts that its example hit, so the file itself is wrong for other "
                  "inputs",
                  hits);
  }
  const std::set<int> distinct(context.units->expert.begin(), context.units->expert.end());
  const bool apart = !distinct.empty() && !context.units->units[0].stacked();
  if (apart && scan.met_experts && !scan.unknown && static_cast<int64_t>(distinct.size()) < router.num_experts) {
    return Refuse(context.path,
                  fmt::format("baked: the graph holds {} of the router's {} experts, so the file itself is wrong for inputs that "
                              "choose the others",
                              scan.units, router.num_experts),
                  router.topk);
  }
  if (scan.stop && !scan.unknown) {
    return Refuse(context.path,
                  "every node between the router and the experts' sum must be one that moves rows, compares, or "
                  "combines linearly",
                  scan.stop);
  }
  return Refuse(context.path, "what this top-k chooses must reach experts of a known form",
                scan.unknown ? scan.unknown : router.topk);
}

// Whether `k` is the same for every input: nothing that it is made of reads a tensor.
bool IsFixed(const Value* k) {
  if (k->type()->kind() == c10::TypeKind::TensorType) return false;
  const auto inputs = k->node()->inputs();
  if (k->node()->kind() == prim::GetAttr) return true;
  return k->node()->kind() != prim::Param && k->node()->blocks().empty() && std::all_of(inputs.begin(), inputs.end(), IsFixed);
}

void MatchRouter(const MatchContext& context, const Router& router, MatchOutcome& outcome) {
  std::optional<BlockMatch> match;
  std::optional<Refusal> refusal;
  int candidates = 0;
  const ScanResult scan = ScanForSum(
      router, *context.flow, *context.units,
      [&](const SumCandidate& candidate) {
        ClaimResult result = ProveCandidate(context, router, candidate);
        if (result.match) {
          match = std::move(result.match);
          return true;
        }
        if (!result.far && !refusal) refusal = std::move(result.refusal);
        return ++candidates >= kMostCandidates;
      },
      router.num_experts);
  if (!match) {
    if (auto rebuilt = RebuildBaked(context, router)) {
      match = std::move(rebuilt->match);
      refusal = std::move(rebuilt->refusal);
      if (!match) outcome.refusals.push_back(*std::move(refusal));
      if (!match) return;
    }
  }
  if (match && !IsFixed(router.topk->input(1))) {
    outcome.refusals.push_back(Refuse(context.path, "the number of experts a token has must not depend on the input", router.topk));
  } else if (match) {
    outcome.matches.push_back(*std::move(match));
  } else if (const bool baked = FindBakedHits(router, *context.flow); refusal && !baked) {
    outcome.refusals.push_back(*std::move(refusal));
  } else {
    const bool here = scan.met_experts || baked;
    (here ? outcome.refusals : outcome.unmet).push_back(DescribeMiss(context, router, scan));
  }
}

}  // namespace

MatchOutcome MatchBlocks(const std::shared_ptr<Graph>& graph, const torch::jit::Module& self, const std::string& path) {
  MatchOutcome outcome;
  const std::vector<Node*> topks = FindTopks(*graph);
  if (topks.empty()) return outcome;
  const GraphFlow flow(*graph);
  const WeightFinder weights(self, *graph);
  const ExpertUnits units = FindUnits(*graph, flow, weights);
  const MatchContext context{graph.get(), &self, path, &flow, &weights, &units};
  for (Node* topk : topks) {
    if (const auto router = FindRouter(topk, weights)) MatchRouter(context, *router, outcome);
  }
  return outcome;
}

}  // namespace autoep

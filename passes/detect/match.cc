// SPDX-License-Identifier: Apache-2.0
// MatchBlocks: each top-k of a graph, its router, the scan for the experts' sum, and the proof.
#include "passes/detect/match.h"

#include <ATen/Parallel.h>
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

// A block has a few values on its way that are no sum yet; a router without ids of its own meets them late.
constexpr int kMostCandidates = 64, kFewCandidates = 8;

Miss DescribeMiss(const MatchContext& context, const Router& router, const ScanResult& scan) {
  if (Node* hits = FindBakedHits(router, *context.flow)) {
    return Refuse(context.path,
                  "baked: the trace holds the experts that its example hit, so the file itself is wrong for other "
                  "inputs",
                  hits);
  }
  std::set<int> distinct(context.units->expert.begin(), context.units->expert.end());
  distinct.erase(-1);
  const bool apart = !distinct.empty() && !context.units->units[0].stacked();
  if (apart && scan.met_experts && !scan.unknown && static_cast<int64_t>(distinct.size()) < router.num_experts) {
    return Refuse(context.path,
                  fmt::format("baked: the graph holds {} of the router's {} experts, so the file itself is wrong for inputs that "
                              "choose the others",
                              scan.units, router.num_experts),
                  router.choice);
  }
  if (scan.stop && !scan.unknown) {
    return Refuse(context.path,
                  "every node between the router and the experts' sum must be one that moves rows, compares, or "
                  "combines linearly",
                  scan.stop);
  }
  return Refuse(context.path, "what this top-k chooses must reach experts of a known form",
                scan.unknown ? scan.unknown : router.choice);
}

// Whether `k` is the same for every input: nothing that it is made of reads a tensor.
bool IsFixed(const Value* k) {
  if (k->type()->kind() == c10::TypeKind::TensorType) return false;
  const auto inputs = k->node()->inputs();
  if (k->node()->kind() == prim::GetAttr) return true;
  return k->node()->kind() != prim::Param && k->node()->blocks().empty() && std::all_of(inputs.begin(), inputs.end(), IsFixed);
}

// A proof runs thousands of ops on a few numbers each: threads that wait for one another cost more than they compute, and
// many times more where other programs use the cores.
class OneThread {
 public:
  OneThread() : threads_(at::get_num_threads()) { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(threads_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int threads_;
};

struct Attempt {
  std::optional<BlockMatch> match;
  std::optional<Miss> refusal;
  bool proved = false;  // the refusal is of a sum that is the experts'
  ScanResult scan;
};

Attempt Try(const MatchContext& context, const Router& router, int64_t least_units) {
  Attempt attempt;
  int candidates = 0;
  const int most = router.ids && least_units >= router.num_experts ? kMostCandidates : kFewCandidates;
  attempt.scan = ScanForSum(router, *context.flow, *context.units, least_units, [&](const SumCandidate& candidate) {
    ClaimResult result = ProveCandidate(context, router, candidate);
    if (result.match) {
      attempt.match = std::move(result.match);
      return true;
    }
    if (!result.far && (!attempt.refusal || (result.proved && !attempt.proved))) {
      attempt.refusal = std::move(result.refusal);
      attempt.proved = result.proved;
    }
    return ++candidates >= most;
  });
  return attempt;
}

bool HasFixedCount(const Router& router) {
  if (router.choice->kind() != aten::topk) return true;
  return IsFixed(router.choice->input(1));
}

bool IsShort(const std::vector<Attempt>& attempts, const std::vector<Router>& routers) {
  return std::any_of(attempts.begin(), attempts.end(), [&](const Attempt& attempt) {
    return attempt.scan.met_experts && attempt.scan.units > 1 && attempt.scan.units < routers[0].num_experts;
  });
}

// True if the gate's block is baked: it is rebuilt, or refused with the reason that the first of its routers meets.
bool MatchBaked(const MatchContext& context, const std::vector<Router>& routers, MatchOutcome& outcome) {
  const Node* hits = nullptr;
  for (const Router& router : routers) {
    if (!hits && router.ids) hits = FindBakedHits(router, *context.flow);
  }
  std::optional<Miss> refusal;
  for (const Router& router : routers) {
    auto rebuilt = RebuildBaked(context, router, hits);
    if (!rebuilt) continue;
    if (rebuilt->match) {
      outcome.matches.push_back(*std::move(rebuilt->match));
      return true;
    }
    if (!refusal) refusal = std::move(rebuilt->refusal);
  }
  if (refusal) outcome.refusals.push_back(*std::move(refusal));
  return refusal.has_value();
}

// The match of a gate's routers, or what keeps the first of them, as a reader would name it, from being one.
void MatchGate(const MatchContext& context, const std::vector<Router>& routers, MatchOutcome& outcome) {
  std::vector<Attempt> attempts;
  for (const Router& router : routers) {
    // With fewer experts than logits, a choice by ids says all there is to say.
    if (!router.ids && IsShort(attempts, routers)) continue;
    if (!HasFixedCount(router)) {
      outcome.refusals.push_back(
          Refuse(context.path, "the number of experts a token has must not depend on the input", router.choice));
      return;
    }
    attempts.push_back(Try(context, router, router.num_experts));
    // Fewer experts than logits: some may answer the token itself.
    const int units = attempts.back().scan.units;
    const bool apart = units > 0 && !context.units->units[0].stacked();
    if (!attempts.back().match && apart && units < router.num_experts) {
      Attempt fewer = Try(context, router, units);
      if (fewer.match || fewer.proved) attempts.back() = std::move(fewer);
    }
    if (!attempts.back().match) continue;
    outcome.matches.push_back(*std::move(attempts.back().match));
    return;
  }
  if (MatchBaked(context, routers, outcome)) return;
  const auto proved =
      std::find_if(attempts.begin(), attempts.end(), [](const Attempt& each) { return each.proved && each.refusal; });
  if (proved != attempts.end()) {
    outcome.refusals.push_back(*std::move(proved->refusal));
    return;
  }
  for (size_t i = 0; i < routers.size(); ++i) {
    const Router& router = routers[i];
    if (!router.ids) continue;
    const bool baked = FindBakedHits(router, *context.flow);
    if (!attempts[i].refusal && !baked && !attempts[i].scan.met_experts) continue;
    const bool plain = attempts[i].refusal && !baked;
    outcome.refusals.push_back(plain ? *std::move(attempts[i].refusal) : DescribeMiss(context, router, attempts[i].scan));
    return;
  }
  // Maxima are common; without experts they are no router.
  if (attempts.back().refusal) {
    outcome.refusals.push_back(*std::move(attempts.back().refusal));
  } else if (routers[0].choice->kind() == aten::topk) {
    outcome.unmet.push_back(DescribeMiss(context, routers[0], attempts[0].scan));
  }
}

bool Holds(const BlockMatch& match, const Node* node) {
  if (!node) return false;
  return match.out->node() == node || std::find(match.consumed.begin(), match.consumed.end(), node) != match.consumed.end();
}

}  // namespace

MatchOutcome MatchBlocks(const std::shared_ptr<Graph>& graph, const torch::jit::Module& self, const std::string& path,
                         ProofMemory* memory) {
  MatchOutcome outcome;
  const auto nodes = graph->nodes();
  if (std::none_of(nodes.begin(), nodes.end(), [](const Node* node) { return MayChoose(node); })) return outcome;
  const GraphFlow flow(*graph);
  const WeightFinder weights(self, *graph);
  const auto gates = FindRouters(*graph, weights);
  if (gates.empty()) return outcome;
  const OneThread one_thread;
  const ExpertUnits units = FindUnits(*graph, flow, weights);
  const Proofs proofs(*graph, self, flow, memory);
  const MatchContext context{graph.get(), &self, path, &flow, &weights, &units, &proofs};
  for (const std::vector<Router>& routers : gates) MatchGate(context, routers, outcome);
  // A maximum elsewhere (of attention, over its sinks) may have led to the same experts: it is no block's router.
  std::erase_if(outcome.refusals, [&](const Miss& miss) {
    return std::any_of(outcome.matches.begin(), outcome.matches.end(),
                       [&](const BlockMatch& match) { return Holds(match, miss.node); });
  });
  return outcome;
}

}  // namespace autoep

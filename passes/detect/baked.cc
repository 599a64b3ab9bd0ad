// SPDX-License-Identifier: Apache-2.0
// From the loops over experts of a graph to a rebuilt block.
#include "passes/detect/baked.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// How the graph is bound to the trace's example, or "" where nothing says that it is. `identity` of the experts that it holds
// have no weights.
std::string DescribeBinding(const ServedExperts& served, bool hits, size_t identity) {
  if (!served.rows.empty()) return "the graph holds the number of rows that each expert got in the trace's example as constants";
  const bool numbered = !served.experts.empty();
  if (numbered && static_cast<int64_t>(served.experts.size()) < served.total) {
    return fmt::format("the graph holds {} of the router's {} experts, those that the trace's example chose",
                       served.count + identity, served.total);
  }
  if (!hits) return "";
  return fmt::format("the graph works only on inputs that choose {} experts between them, as the trace's example did",
                     served.count == served.total ? fmt::format("all {}", served.total) : fmt::format("exactly {}", served.count));
}

std::string DescribeAssumption(const ServedExperts& served, const AllExperts& all, const std::vector<int64_t>& shown_identity) {
  if (served.unit_of_expert.empty()) return "";
  std::vector<int64_t> missing, identity;
  for (int64_t e = 0; e < static_cast<int64_t>(all.experts.size()); ++e) {
    if (served.unit_of_expert[e] < 0) missing.push_back(e);
  }
  std::set_difference(all.identity.begin(), all.identity.end(), shown_identity.begin(), shown_identity.end(),
                      std::back_inserter(identity));
  std::string text;
  if (!missing.empty() && !served.pattern.empty()) {
    text += fmt::format(
        "; assumed: experts {} of {}, which the graph does not hold, compute as the others do: their modules have the "
        "same classes, names, shapes and dtypes",
        fmt::join(missing, ", "), served.pattern.substr(0, served.pattern.find('#')));
  }
  if (!identity.empty()) {
    text += fmt::format("; assumed: experts {}, which the graph does not hold, answer the token itself: torch's Identity stands {}",
                        fmt::join(identity, ", "), served.pattern.empty() ? "beside weights that have none for them" : "for them");
  }
  return text;
}

class Rebuilder {
 public:
  Rebuilder(const MatchContext& context, const Router& router, const Node* hits) : context_(context), router_(router), hits_(hits) {}

  std::optional<ClaimResult> Rebuild() {
    std::vector<ServedExperts> loops = FindServedExperts(*context_.self, router_, *context_.units);
    if (hits_) {
      if (auto frozen = FindFrozenLoop()) loops.push_back(*std::move(frozen));
    }
    for (const ServedExperts& served : loops) {
      const std::string binding = DescribeBinding(served, hits_ != nullptr, 0);
      if (binding.empty() || HoldsMissing(served)) continue;
      if (auto result = RebuildLoop(served, binding)) {
        if (result->match) return result;
        if (!refused_) refused_ = std::move(result);
      }
    }
    return std::move(refused_);
  }

 private:
  static std::string Baked(const std::string& binding, const std::string& reason) {
    return fmt::format("baked: {}, so the file itself is wrong for other inputs; it cannot be rebuilt: {}", binding, reason);
  }

  ClaimResult Refused(const ServedExperts& served, const std::string& binding, const std::string& reason) {
    ClaimResult result;
    const Node* node = context_.units->units[served.members.front()].output->node();
    result.refusal = Refuse(context_.path, Baked(binding, reason), node);
    return result;
  }

  // In a frozen graph nothing but the sum tells which feed-forwards are the router's experts.
  std::optional<ServedExperts> FindFrozenLoop() const {
    std::optional<ServedExperts> found;
    ScanForSum(router_, *context_.flow, *context_.units, router_.num_experts, [&](const SumCandidate& candidate) {
      found = FrozenLoop(router_, *context_.units, candidate.units);
      return true;
    });
    return found;
  }

  // True if the graph reads a tensor of an expert that is no feed-forward of the loop: then something else is wrong with it.
  bool HoldsMissing(const ServedExperts& served) {
    if (served.pattern.empty()) return false;
    if (reads_.empty()) CollectReads(context_.graph->block());
    for (int64_t e = 0; e < served.total; ++e) {
      if (served.unit_of_expert[e] >= 0) continue;
      for (const std::string& pattern : Patterns(served)) {
        const std::string path = NumberedPath(pattern, e);
        const auto at = reads_.lower_bound(path);
        if (at != reads_.end() && (*at == path || at->starts_with(path + "."))) return true;
      }
    }
    return false;
  }

  std::vector<std::string> Patterns(const ServedExperts& served) const {
    const ExpertFfn& unit = context_.units->units[served.members.front()];
    std::vector<std::string> patterns;
    int64_t number = -1;
    const auto add = [&](const Weight& weight) {
      patterns.push_back(NumberedPattern(*context_.self, weight.name, served.total, &number));
    };
    add(unit.down.weight);
    add(unit.up.projection.weight);
    if (unit.gate) add(unit.gate->projection.weight);
    return patterns;
  }

  void CollectReads(torch::jit::Block* block) {
    for (Node* node : block->nodes()) {
      for (torch::jit::Block* inner : node->blocks()) CollectReads(inner);
      if (node->kind() != prim::GetAttr || node->output()->type()->kind() != c10::TypeKind::TensorType) continue;
      if (const auto weight = context_.weights->Find(node->output())) reads_.insert(weight->name);
    }
  }

  // What stands in the way besides, where the router drops tokens.
  std::string DescribeCapacity(const SumCandidate& candidate) const {
    const auto facts = DescribeRouter(router_, candidate.value, candidate.value);
    const auto capacity = facts.find("capacity");
    if (capacity == facts.end()) return "";
    return fmt::format("; and the capacity of its router, {} tokens an expert, may be that of the trace's example", capacity->second);
  }

  // Nullopt where what this router chooses does not reach the loop.
  std::optional<ClaimResult> RebuildLoop(const ServedExperts& served, const std::string& binding) {
    std::optional<ClaimResult> first;
    AllExperts all;
    const auto take = [&](const SumCandidate& candidate) {
      const auto held = [&](int unit) {
        return std::find(candidate.units.begin(), candidate.units.end(), unit) != candidate.units.end();
      };
      if (!std::all_of(served.members.begin(), served.members.end(), held)) return false;
      if (!first) {
        all = CollectExperts(*context_.self, served, *context_.units, *context_.weights);
        if (!all.failure.empty()) {
          first = Refused(served, binding, all.failure);
          return true;
        }
      }
      const Rebuilding rebuilding{&served, &all};
      ClaimResult result = ProveCandidate(context_, router_, candidate, &rebuilding);
      if (!result.match) result.refusal.predicate += DescribeCapacity(candidate);
      if (result.match || !first || first->far) first = std::move(result);
      return first->match.has_value() || ++candidates_ >= kMostCandidates;
    };
    ScanForSum(router_, *context_.flow, *context_.units, static_cast<int64_t>(served.members.size()), take);
    if (!first) return first;
    if (!first->match) {
      if (!first->refusal.predicate.starts_with("baked")) {
        first->refusal.predicate = Baked(binding, first->refusal.predicate);
      }
      return first;
    }
    MoeLayer& layer = first->match->layer;
    layer.rebuilt = fmt::format("baked: {}, so the file itself is wrong for other inputs",
                                DescribeBinding(served, hits_ != nullptr, first->shown_identity.size()));
    layer.notes.push_back(
        fmt::format("{}; rebuilt from the weights of all {} experts, so the converted model is right where the "
                    "file is not{}",
                    layer.rebuilt, served.total - all.identity.size(), DescribeAssumption(served, all, first->shown_identity)));
    return first;
  }

  static constexpr int kMostCandidates = 64;  // between the last expert and the sum are a few values
  const MatchContext& context_;
  const Router& router_;
  const Node* hits_;
  int candidates_ = 0;
  std::set<std::string> reads_;  // names of all tensors that the graph reads
  std::optional<ClaimResult> refused_;
};

}  // namespace

Node* FindBakedHits(const Router& router, const GraphFlow& flow) {
  const Value* ids = router.ids ? router.ids : router.choice->output(router.choice->outputs().size() - 1);
  std::set<GraphFlow::Root> chosen = {flow.RootOf(ids)};
  for (int step = flow.StepOf(ids) + 1; step < flow.size(); ++step) {
    Node* node = flow.NodeAt(step);
    const bool reads = std::any_of(flow.Reads(step).begin(), flow.Reads(step).end(),
                                   [&](const Value* read) { return chosen.contains(flow.RootOf(read)); });
    if (!reads) continue;
    if (node->kind() == prim::ListUnpack && node->input()->node()->kind() == aten::unbind) {
      const Node* source = node->input()->node();
      for (int depth = 0; depth < 8 && !source->inputs().empty(); ++depth) {
        if (source->kind() == aten::nonzero || source->kind() == aten::where) return node;
        source = source->input(0)->node();
      }
    }
    if (node->kind() == aten::topk || node->kind() == aten::softmax) continue;
    for (const Value* output : node->outputs()) chosen.insert(flow.RootOf(output));
  }
  return nullptr;
}

std::optional<ClaimResult> RebuildBaked(const MatchContext& context, const Router& router, const Node* hits) {
  return Rebuilder(context, router, hits).Rebuild();
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// One description of a proved block.
#include "passes/detect/describe.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "passes/detect/capacity_trial.h"
#include "passes/detect/consumed.h"
#include "passes/detect/guards.h"
#include "passes/detect/ir.h"
#include "passes/detect/names.h"
#include "passes/detect/token_chain.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;

namespace {

class Description {
 public:
  Description(const MatchContext& context, const SumCandidate& sum, const Claim& claim, const ShapeTable& shapes,
              const std::vector<const ExpertFfn*>& experts)
      : context_(context),
        flow_(*context.flow),
        units_(*context.units),
        router_(*claim.stage.router),
        sum_(sum),
        claim_(claim),
        shapes_(shapes),
        experts_(experts) {}

  std::variant<BlockMatch, Miss> Describe(const std::map<std::string, std::string>& router, bool rebuilt) {
    if (claim_.weights_on_input && !AnswersZeroWithZero(*experts_[0])) {
      return Refused("experts whose input is weighted must have no biases and no factor");
    }
    BlockMatch match;
    match.layer.router = router;
    if (auto miss = FillWhatIsComputed(match)) return *std::move(miss);
    if (auto miss = CheckGuards()) return *std::move(miss);
    AddRouterFacts(match);
    if (auto miss = CheckCapacity(match)) return *std::move(miss);
    match.layer.consumed_modules = FindConsumedModules(*context_.self, context_.path, match.layer);
    match.layer.shared_experts = FindSharedExperts();
    FillValues(match);
    if (rebuilt) {
      for (const ExpertFfn* expert : experts_) match.rebuilt.push_back(*expert);
    }
    if (auto miss = CheckWrites(match)) return *std::move(miss);
    ConsumedNodes consumed = FindConsumed(flow_, units_, claim_.steps, {sum_.value, sum_.step}, claim_.tokens);
    if (consumed.kept) return Refused("what the experts compute must be used by their sum alone", consumed.kept);
    match.consumed = std::move(consumed.nodes);
    return match;
  }

 private:
  Miss Refused(std::string predicate, const Node* node = nullptr) const {
    return Refuse(context_.path, std::move(predicate), node ? node : sum_.value->node());
  }

  std::optional<Miss> FillWhatIsComputed(BlockMatch& match) {
    match.layer.path = context_.path;
    match.layer.top_k = claim_.cut.top_k;
    match.layer.weights_on_input = claim_.weights_on_input;
    if (auto miss = FillLayer(context_, router_, experts_, match.layer)) return miss;
    if (match.layer.top_k > match.layer.num_experts) {
      return Refused("a token must not choose more experts than there are with weights");
    }
    match.weights_scale = experts_[0]->scale;
    match.identity_experts = router_.num_experts - match.layer.num_experts;
    return std::nullopt;
  }

  std::optional<Miss> CheckGuards() const {
    for (const int step : claim_.steps) {
      const Node* node = flow_.NodeAt(step);
      const bool clamps = IsClamp(node) && MatchGuard(node);
      if (clamps && !GuardsOnly(node)) return Refused("ids may not be cut off below the number of experts", node);
    }
    if (const Node* guard = ForeignGuard()) return Refused("a guard among the experts must be of the chosen ids", guard);
    return std::nullopt;
  }

  void AddRouterFacts(BlockMatch& match) const {
    auto& facts = match.layer.router;
    if (match.weights_scale != 1.0) facts["expert_scale"] = fmt::format("{}", match.weights_scale);
    if (match.identity_experts > 0) facts["identity_experts"] = std::to_string(match.identity_experts);
    match.capacity_tests = FindCapacityTests(router_, claim_.cut.choice, claim_.cut.weights);
    // What counts second choices behind the first is for who knows the family (names.h).
    if (!facts.contains("capacity") || facts.contains("second_choices")) return;
    match.layer.notes.push_back(
        fmt::format("a token too many for its expert is dropped: the router compares a count of each expert's tokens with {}, a "
                    "constant of the file; where its author computed that from the number of tokens, the file is right only for "
                    "as many as the trace's example had, or for fewer",
                    facts.at("capacity")));
  }

  // Else it is none that anyone could know how to do without.
  std::optional<Miss> CheckCapacity(const BlockMatch& match) const {
    if (!match.layer.router.contains("second_choices")) return std::nullopt;
    const auto logits = shapes_.find(router_.gate->output());
    const bool counts =
        logits != shapes_.end() && CountsTokens(claim_.stage, flow_, match.capacity_tests, logits->second.sizes.size());
    if (counts) return std::nullopt;
    return Refused(
        "a capacity that counts second choices behind the first must drop a token where there are more than it says, and only "
        "there",
        match.capacity_tests.front());
  }

  void FillValues(BlockMatch& match) const {
    const Cut& cut = claim_.cut;
    match.tokens = claim_.tokens;
    match.routing = cut.routing;
    match.ids = cut.routing == Routing::kPairs ? cut.choice : cut.ids;
    if (cut.routing == Routing::kMask) match.mask = cut.choice;
    match.weights = cut.weights;
    match.one_weight = match.mask && cut.weights_rows.columns <= 1;
    match.out = sum_.value;
    match.insert_after = flow_.NodeAt(sum_.step);
    match.out_dtype = shapes_.at(sum_.value).dtype;
    const auto flat = [](const RowShape& rows) { return !rows.batched && rows.columns > 0; };
    match.flatten =
        shapes_.at(claim_.tokens).sizes.size() != 2 || !flat(cut.weights_rows) || (cut.choice && !flat(cut.choice_rows));
  }

  std::optional<Miss> CheckWrites(const BlockMatch& match) const {
    for (const Value* given : {match.tokens, match.ids, match.mask, match.weights}) {
      if (const Node* writer = given ? WriterAfterRead(given) : nullptr) {
        return Refused("what enters the experts must not be changed in place before their sum", writer);
      }
    }
    return std::nullopt;
  }

  // So that experts that are not chosen add nothing. All activations are 0 at 0.
  static bool AnswersZeroWithZero(const ExpertFfn& expert) {
    return !expert.up.projection.bias && !expert.down.bias && (!expert.gate || !expert.gate->projection.bias) &&
           expert.scale == 1.0;
  }

  // Modules that hold a feed-forward of the same tokens that is none of the experts'.
  std::vector<std::string> FindSharedExperts() const {
    std::vector<std::string> found;
    const std::set<int> experts(claim_.units.begin(), claim_.units.end());
    for (const auto& [node, index] : units_.by_output) {
      const ExpertFfn& unit = units_.units[index];
      const std::string module = CommonModule(unit.up.projection.weight.name, unit.down.weight.name);
      if (!experts.contains(units_.expert[index]) && !module.empty() && RootOfRows(unit.rows) == claim_.stage.root)
        found.push_back(module);
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  // "shared.up.weight" and "shared.down.weight": "shared".
  static std::string CommonModule(const std::string& a, const std::string& b) {
    const size_t same = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
    const size_t dot = a.rfind('.', same);
    return same == 0 || dot == std::string::npos || dot > same ? "" : a.substr(0, dot);
  }

  // Inside of an expert, where no trial runs it.
  const Node* ForeignGuard() const {
    for (const int step : claim_.steps) {
      const auto inside = units_.by_step.find(step);
      if (inside == units_.by_step.end()) continue;
      for (const int unit : inside->second) {
        const auto& nodes = units_.units[unit].nodes;
        const auto foreign = [&](const Node* node) { return MatchGuard(node) && !GuardsOnly(node); };
        const auto found = std::find_if(nodes.begin(), nodes.end(), foreign);
        if (found != nodes.end()) return *found;
      }
    }
    return nullptr;
  }

  // Changes nothing, whatever the router chooses.
  bool GuardsOnly(const Node* node) const {
    const auto guard = MatchGuard(node);
    return guard && guard->ids == router_.ids && guard->bound >= router_.num_experts;
  }

  // A step that writes to `given` between the region's first read of it and the sum, or null.
  const Node* WriterAfterRead(const Value* given) const {
    const std::set<int>& steps = claim_.steps;
    const GraphFlow::Root root = flow_.RootOf(given);
    const auto reads = [&](int step) {
      const auto values = StepReads(step, flow_, units_);
      return std::any_of(values.begin(), values.end(), [&](const Value* read) { return flow_.RootOf(read) == root; });
    };
    const auto first = std::find_if(steps.begin(), steps.end(), reads);
    if (first == steps.end()) return nullptr;
    for (const int writer : flow_.Writers(root)) {
      const bool between = writer > flow_.StepOf(given) && writer >= *first && writer <= sum_.step;
      if (between && !GuardsOnly(flow_.NodeAt(writer))) return flow_.NodeAt(writer);
    }
    return nullptr;
  }

  const MatchContext& context_;
  const GraphFlow& flow_;
  const ExpertUnits& units_;
  const Router& router_;
  const SumCandidate& sum_;
  const Claim& claim_;
  const ShapeTable& shapes_;
  const std::vector<const ExpertFfn*>& experts_;
};

}  // namespace

std::variant<BlockMatch, Miss> DescribeBlock(const MatchContext& context, const SumCandidate& sum, const Claim& claim,
                                             const ShapeTable& shapes, const std::vector<const ExpertFfn*>& experts,
                                             const std::map<std::string, std::string>& router, bool rebuilt) {
  return Description(context, sum, claim, shapes, experts).Describe(router, rebuilt);
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// One candidate sum: which values enter its region, and the proof.
#include "passes/detect/claim.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <variant>

#include "passes/detect/describe.h"
#include "passes/detect/ir.h"
#include "passes/detect/proof.h"
#include "passes/detect/token_chain.h"
#include "plugin/io/text.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

std::string FirstLine(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = from_torch ? from_torch->what_without_backtrace() : error.what();
  return Printable(text.substr(0, text.find('\n')));
}

class CandidateProof {
 public:
  CandidateProof(const MatchContext& context, const Router& router, const SumCandidate& candidate, const Rebuilding* rebuilding)
      : context_(context),
        flow_(*context.flow),
        units_(*context.units),
        router_(router),
        candidate_(candidate),
        rebuilding_(rebuilding) {}

  ClaimResult Prove() {
    const ExpertFfn& unit = units_.units[*std::min_element(candidate_.units.begin(), candidate_.units.end())];
    hidden_ = unit.hidden();
    dtype_ = unit.dtype();
    chain_ = FindTokenChain(unit, *context_.graph, flow_, router_);
    if (chain_.empty()) return Refused("the experts must read tokens of the graph's own");
    for (const int rank : {3, 2}) {
      root_rank_ = rank;
      auto result = ProveWithRank();
      if (result.match) return result;
      if (!kept_) kept_ = std::move(result);
    }
    return *std::move(kept_);
  }

 private:
  ClaimResult Refused(std::string predicate, const Node* node = nullptr, bool far = false) {
    ClaimResult result;
    result.refusal = Refuse(context_.path, std::move(predicate), node ? node : candidate_.value->node());
    result.far = far;
    result.proved = hard_;
    return result;
  }

  // How many experts a token of a baked loop has. Of a table or a mask, the best one: a mask of more is made by counting, up to a
  // number that traces of known routers take from their example.
  int64_t Choices() const { return router_.ids ? MostChoices(router_) : 1; }

  // What a baked loop can serve may be another number of tokens.
  Tokens ShapeTokens() const {
    if (!rebuilding_) return kShapeTokens;
    std::mt19937 random(11);
    const ServedChoice choice = MakeServedChoice(*rebuilding_->served, Choices(), kShapeTokens.count(), random);
    return {choice.batch, choice.length};
  }

  Stage MakeStage() const {
    const ServedExperts* served = rebuilding_ ? rebuilding_->served : nullptr;
    return {context_.self, context_.graph, &units_, &router_,  chain_.back(), root_rank_,
            hidden_,       dtype_,         served,  Choices(), ShapeTokens()};
  }

  // The steps from root and gate to the sum. Where the gate reads something else than the root, down to the logits only. Where
  // a step reads what lies before the root (a norm's type_as), the root moves to where that step is done.
  std::optional<std::set<int>> StepsFromRouter() {
    std::optional<Node*> farthest;
    while (true) {
      Closure closure = StepsFromRoot();
      if (!closure.foreign) return std::move(closure.steps);
      if (!farthest) farthest = closure.foreign;
      if (chain_.size() == 1) break;
      chain_.pop_back();
    }
    foreign_ = *farthest;
    return std::nullopt;
  }

  Closure StepsFromRoot() const {
    ClosureOptions options;
    options.boundary = {chain_.back()};
    options.first_step = flow_.StepOf(chain_.back());
    options.explained_only = false;
    Closure closure = FindClosure(candidate_.value, candidate_.step, flow_, units_, options);
    if (!closure.foreign) return closure;
    options.boundary.insert(router_.input);
    options.first_step = -1;
    return FindClosure(candidate_.value, candidate_.step, flow_, units_, options);
  }

  ClaimResult ProveWithRank() {
    const auto steps = StepsFromRouter();
    if (!steps) return Refused("the experts' sum must depend on the tokens and the router alone", foreign_);
    try {
      shapes_ = context_.proofs->InferShapes(MakeStage(), *steps);
    } catch (const std::exception& error) {
      return Refused("the block must run on made-up tokens: " + FirstLine(error));
    }
    LeaveOutOtherLogits();
    if (!PickTokens()) return Refused("the experts' sum must have the shape of the tokens", nullptr, /*far=*/true);
    if (router_.ids && !shapes_.contains(router_.ids))
      return Refused("the choice of experts must be made for every token", router_.choice);
    std::optional<ClaimResult> first;
    for (const Cut& cut : FindCuts(candidate_, router_, flow_, units_, *steps, shapes_, ShapeTokens())) {
      auto result = ProveCut(cut);
      if (result.match) return result;
      if (!first) first = std::move(result);
      if (hard_) break;
    }
    if (!first) return Refused("the choices' weights must be one value of the shape of the choice");
    return *std::move(first);
  }

  // A top-k of the first logits alone chooses among as many experts (those behind may weigh shared ones).
  void LeaveOutOtherLogits() {
    const Node* choice = router_.choice;
    if (rebuilding_ || choice->kind() != aten::topk) return;
    const auto from = shapes_.find(choice->input(0));
    if (from == shapes_.end() || from->second.sizes.empty()) return;
    const auto dim = ConstInt(choice->input(2));
    const int64_t last = static_cast<int64_t>(from->second.sizes.size()) - 1;
    if (dim && (*dim == -1 || *dim == last)) router_.num_experts = std::min(router_.num_experts, from->second.sizes.back());
  }

  bool PickTokens() {
    const auto out = shapes_.find(candidate_.value);
    if (out == shapes_.end()) return false;
    for (Value* value : chain_) {
      const auto shape = shapes_.find(value);
      if (shape == shapes_.end() && value != chain_.back()) continue;
      if (shape == shapes_.end() || shape->second.sizes != out->second.sizes || shape->second.sizes.back() != hidden_) continue;
      ClosureOptions options;
      options.boundary = {chain_.back()};
      options.first_step = flow_.StepOf(chain_.back());
      if (FindClosure(value, candidate_.step, flow_, units_, options).foreign) continue;
      tokens_ = value;
      return true;
    }
    return false;
  }

  // Values between the gate and the choice that have the tokens' rows: the region may ask for their sizes.
  std::map<const Value*, RowShape> RouterShapes() const {
    std::map<const Value*, RowShape> found;
    const int last = flow_.StepOf(router_.choice);
    for (const auto& [value, shape] : shapes_) {
      const int step = flow_.StepOf(value);
      if (step < flow_.StepOf(router_.gate) || step > last) continue;
      if (const auto rows = ParseRowShape(shape.sizes, ShapeTokens())) found.emplace(value, *rows);
    }
    return found;
  }

  ClaimResult ProveCut(const Cut& cut) {
    if (rebuilding_ && !router_.ids && cut.top_k != Choices())
      return Refused("a token must have one expert where a mask says which");
    ClosureOptions options;
    options.boundary = {chain_.back(), cut.weights};
    if (cut.choice) options.boundary.insert(cut.choice);
    const auto router_shapes = RouterShapes();
    for (const auto& [value, shape] : router_shapes) options.shapes.insert(value);
    const Closure region = FindClosure(candidate_.value, candidate_.step, flow_, units_, options);
    if (region.foreign) {
      return Refused(
          "every node between the router and the experts' sum must be one that moves rows, compares, or combines "
          "linearly",
          region.foreign);
    }
    Claim claim;
    claim.stage = MakeStage();
    claim.steps = region.steps;
    for (const Value* value : region.shapes) claim.shapes.push_back({value, router_shapes.at(value), shapes_.at(value).dtype});
    claim.tokens = tokens_;
    claim.out = candidate_.value;
    claim.cut = cut;
    for (const int step : region.steps) {
      const auto inside = units_.by_step.find(step);
      if (inside == units_.by_step.end()) continue;
      for (const int unit : inside->second) claim.units.push_back(units_.expert[unit]);
    }
    std::sort(claim.units.begin(), claim.units.end());
    claim.units.erase(std::unique(claim.units.begin(), claim.units.end()), claim.units.end());
    auto facts = DescribeRouter(router_, cut.choice, cut.weights);
    claim.negative_weights = facts["scores"] == "none" && facts["renorm"] != "softmax";
    return Check(claim, std::move(facts));
  }

  ClaimResult Check(Claim& claim, std::map<std::string, std::string> facts) {
    if (claim.units.empty()) return Refused("the experts' sum must hold experts");
    if (rebuilding_ && claim.units != rebuilding_->served->units) {
      return Refused("the experts' sum must hold all experts of one loop and no others");
    }
    if (units_.units[claim.units[0]].stacked() && claim.units.size() != 1) {
      return Refused("the experts must be in one stacked feed-forward");
    }
    std::optional<ClaimResult> first;
    for (const bool on_input : {false, true}) {
      claim.weights_on_input = on_input;
      auto result = CheckWeights(claim, facts);
      if (result.match || hard_) return result;
      if (!first) first = std::move(result);
    }
    return *std::move(first);
  }

  // A baked loop, with those of the experts that answer the token itself that it holds: told by what it answers for them.
  ServedExperts WithIdentity(const Claim& claim) {
    ServedExperts served = *rebuilding_->served;
    shown_identity_.clear();
    if (rebuilding_->all->identity.empty()) return served;
    const std::vector<int> answers = context_.proofs->FindUnitOfExpert(claim);
    for (const int64_t e : rebuilding_->all->identity) {
      TORCH_CHECK(answers[e] == kIdentity || answers[e] == kNoUnit, "expert ", e, " must answer the token itself");
      if (answers[e] == kIdentity) shown_identity_.push_back(e);
    }
    for (const int64_t e : shown_identity_) served.unit_of_expert[e] = kIdentity;
    served.experts.insert(served.experts.end(), shown_identity_.begin(), shown_identity_.end());
    return served;
  }

  // A step behind the sum that reads what the router chose, other than as the sum: an expert that answers the token itself may
  // stand there.
  const Node* ReaderOfChoiceBehind() const {
    const Value* ids = router_.ids ? router_.ids : router_.choice->outputs().back();
    const GraphFlow::Root sum = flow_.RootOf(candidate_.value);
    std::set<GraphFlow::Root> chosen = {flow_.RootOf(ids)};
    for (int step = flow_.StepOf(ids) + 1; step < flow_.size(); ++step) {
      const auto& reads = flow_.Reads(step);
      if (std::none_of(reads.begin(), reads.end(), [&](const Value* read) { return chosen.contains(flow_.RootOf(read)); }))
        continue;
      if (step > candidate_.step) return flow_.NodeAt(step);
      for (const Value* output : flow_.NodeAt(step)->outputs()) chosen.insert(flow_.RootOf(output));
      chosen.erase(sum);
    }
    return nullptr;
  }

  ClaimResult CheckWeights(Claim claim, const std::map<std::string, std::string>& facts) {
    std::vector<const ExpertFfn*> experts;
    std::optional<ServedExperts> served;
    try {
      std::vector<int> unit_of_expert;
      if (rebuilding_ && (!rebuilding_->served->unit_of_expert.empty() || units_.units[claim.units[0]].stacked())) {
        claim.stage.served = &served.emplace(WithIdentity(claim));
        unit_of_expert = served->unit_of_expert;
        for (const ExpertFfn& expert : rebuilding_->all->experts) experts.push_back(&expert);
        const bool shown = shown_identity_.size() == rebuilding_->all->identity.size();
        if (const Node* reader = shown ? nullptr : ReaderOfChoiceBehind()) {
          return Refused("what was chosen must not be used behind the experts' sum", reader, /*far=*/true);
        }
      } else if (units_.units[claim.units[0]].stacked()) {
        experts.push_back(&units_.units[claim.units[0]]);
      } else {
        unit_of_expert = context_.proofs->FindUnitOfExpert(claim);
        // Experts that answer the token itself come last.
        size_t own = unit_of_expert.size();
        while (own > 0 && unit_of_expert[own - 1] == kIdentity) --own;
        if (claim.units.size() != own) {
          return Refused(fmt::format("the graph must hold one feed-forward for each of the router's {} experts, and holds {}", own,
                                     claim.units.size()));
        }
        std::vector<int> sorted(unit_of_expert.begin(), unit_of_expert.begin() + own);
        for (const int unit : sorted) experts.push_back(unit < 0 ? nullptr : &units_.units[unit]);
        std::sort(sorted.begin(), sorted.end());
        if (sorted != claim.units) return Refused("each expert of the router must be answered by a feed-forward of its own");
      }
      const std::string difference = context_.proofs->CheckClaim(claim, unit_of_expert);
      if (!difference.empty()) return Refused("evaluation: " + difference);
    } catch (const std::exception& error) {
      return Refused("dispatch and combine must work for every number of tokens and every choice of experts: " + FirstLine(error));
    }
    hard_ = true;
    auto described = DescribeBlock(context_, candidate_, claim, shapes_, experts, facts, rebuilding_ != nullptr);
    ClaimResult result;
    result.proved = true;
    if (auto* miss = std::get_if<Miss>(&described)) {
      result.refusal = std::move(*miss);
    } else {
      result.match = std::get<BlockMatch>(std::move(described));
      result.shown_identity = shown_identity_;
    }
    return result;
  }

  const MatchContext& context_;
  const GraphFlow& flow_;
  const ExpertUnits& units_;
  Router router_;
  const SumCandidate& candidate_;
  const Rebuilding* rebuilding_;
  std::vector<Value*> chain_;  // values of the top block from an expert's rows back to the root
  int64_t hidden_ = 0;
  at::ScalarType dtype_ = at::kFloat;
  int root_rank_ = 3;
  ShapeTable shapes_;
  Value* tokens_ = nullptr;
  Node* foreign_ = nullptr;
  std::vector<int64_t> shown_identity_;
  bool hard_ = false;  // the arithmetic is proved: another reading will not help
  std::optional<ClaimResult> kept_;
};

}  // namespace

ClaimResult ProveCandidate(const MatchContext& context, const Router& router, const SumCandidate& candidate,
                           const Rebuilding* rebuilding) {
  return CandidateProof(context, router, candidate, rebuilding).Prove();
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// One candidate sum: which values enter its region, the proof, and what of the graph the experts' ops will replace.
#include "passes/detect/claim.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <random>
#include <utility>

#include "passes/detect/consumed.h"
#include "passes/detect/guards.h"
#include "passes/detect/ir.h"
#include "passes/detect/names.h"
#include "passes/detect/proof.h"
#include "plugin/io/text.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// Ops that keep or pick token rows: the first input holds the tokens.
bool KeepsRows(const Node* node) {
  switch (node->kind()) {
    case aten::to:
    case aten::view:
    case aten::reshape:
    case aten::flatten:
    case aten::unsqueeze:
    case aten::squeeze:
    case aten::expand:
    case aten::repeat:
    case aten::repeat_interleave:
    case aten::contiguous:
    case aten::detach:
    case aten::clone:
    case aten::index:
    case aten::index_select:
    case aten::masked_select:
    case aten::slice:
    case aten::narrow:
    case aten::select:
    case aten::split:
    case aten::chunk:
    case aten::unbind:
    case prim::ListUnpack:
      return true;
    default:
      static const std::set<c10::Symbol> others = {aten::view_as, aten::reshape_as, aten::type_as,
                                                   aten::gather,  aten::alias,      c10::Symbol::fromQualString("aten::expand_as")};
      return others.contains(node->kind()) || MatchGuard(node);
  }
}

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
    FindTokens();
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

  // From an expert's rows back to where they come from, through what keeps or picks rows.
  void FindTokens() {
    const ExpertFfn& unit = units_.units[*std::min_element(candidate_.units.begin(), candidate_.units.end())];
    hidden_ = unit.hidden();
    dtype_ = unit.dtype();
    Value* value = unit.rows;
    while (true) {
      const Node* node = value->node();
      const bool top = node->kind() == prim::Param ? flow_.StepOf(value) < 0 : node->owningBlock() == context_.graph->block();
      if (top) chain_.push_back(value);
      Value* rows = RowsOf(value->node());
      if (!rows) break;
      value = rows;
    }
    if (!chain_.empty() && chain_.back() != value) chain_.clear();
  }

  // What a node takes rows from, or null. Of factors behind the gate, the one that does not come from it: weights may act on
  // the input. A parameter holds no rows: a norm may stand behind the gate too.
  Value* RowsOf(Node* node) const {
    if (KeepsRows(node)) return node->input(0);
    if (flow_.StepOf(node) < flow_.StepOf(router_.gate)) return nullptr;
    std::vector<Value*> factors;
    if (node->kind() == aten::mul || node->kind() == aten::mul_) factors = {node->input(0), node->input(1)};
    if (node->kind() == aten::einsum) factors = ListElements(node->input(1));
    for (Value* factor : factors) {
      Value* made = factor;
      while (KeepsRows(made->node())) made = made->node()->input(0);
      const bool constant = made->node()->kind() == prim::GetAttr || made->node()->kind() == prim::Constant;
      if (!constant && flow_.StepOf(made) < flow_.StepOf(router_.gate)) return factor;
    }
    return nullptr;
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
    return {context_.self, context_.graph, &units_, &router_, chain_.back(), root_rank_, hidden_, dtype_, served, Choices(), ShapeTokens()};
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
    if (rebuilding_ && !router_.ids && cut.top_k != Choices()) return Refused("a token must have one expert where a mask says which");
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
    if (claim.weights_on_input && !AnswersZeroWithZero(*experts[0])) {
      return Refused("experts whose input is weighted must have no biases and no factor");
    }
    return Finish(claim, experts, facts);
  }

  // So that experts that are not chosen add nothing. All activations are 0 at 0.
  static bool AnswersZeroWithZero(const ExpertFfn& expert) {
    return !expert.up.projection.bias && !expert.down.bias && (!expert.gate || !expert.gate->projection.bias) &&
           expert.scale == 1.0;
  }

  ClaimResult Finish(const Claim& claim, const std::vector<const ExpertFfn*>& experts, std::map<std::string, std::string> facts) {
    ClaimResult result;
    BlockMatch match;
    match.layer.path = context_.path;
    match.layer.top_k = claim.cut.top_k;
    match.layer.weights_on_input = claim.weights_on_input;
    match.layer.router = std::move(facts);
    if (auto refusal = FillLayer(context_, router_, experts, match.layer)) {
      result.refusal = *std::move(refusal);
      result.proved = true;
      return result;
    }
    if (match.layer.top_k > match.layer.num_experts) {
      return Refused("a token must not choose more experts than there are with weights");
    }
    match.weights_scale = experts[0]->scale;
    match.identity_experts = router_.num_experts - match.layer.num_experts;
    for (const int step : claim.steps) {
      const Node* node = flow_.NodeAt(step);
      const bool clamps = IsClamp(node) && MatchGuard(node);
      if (clamps && !GuardsOnly(node)) return Refused("ids may not be cut off below the number of experts", node);
    }
    if (const Node* guard = ForeignGuard(claim)) return Refused("a guard among the experts must be of the chosen ids", guard);
    if (match.weights_scale != 1.0) match.layer.router["expert_scale"] = fmt::format("{}", match.weights_scale);
    if (match.identity_experts > 0) match.layer.router["identity_experts"] = std::to_string(match.identity_experts);
    match.capacity_tests = FindCapacityTests(router_, claim.cut.choice, claim.cut.weights);
    // What counts second choices behind the first is for who knows the family (names.h).
    const bool fixed = match.layer.router.contains("capacity") && !match.layer.router.contains("second_choices");
    if (fixed) {
      match.layer.notes.push_back(
          fmt::format("a token too many for its expert is dropped: the router compares a count of each expert's tokens with {}, a "
                      "constant of the file; where its author computed that from the number of tokens, the file is right only for "
                      "as many as the trace's example had, or for fewer",
                      match.layer.router.at("capacity")));
    }
    match.layer.consumed_modules = FindConsumedModules(*context_.self, context_.path, match.layer);
    match.layer.shared_experts = FindSharedExperts(claim);
    match.tokens = tokens_;
    match.routing = claim.cut.routing;
    match.ids = claim.cut.routing == Routing::kPairs ? claim.cut.choice : claim.cut.ids;
    if (claim.cut.routing == Routing::kMask) match.mask = claim.cut.choice;
    match.weights = claim.cut.weights;
    match.one_weight = match.mask && claim.cut.weights_rows.columns <= 1;
    match.out = candidate_.value;
    match.insert_after = flow_.NodeAt(candidate_.step);
    match.out_dtype = shapes_.at(candidate_.value).dtype;
    if (rebuilding_) {
      for (const ExpertFfn* expert : experts) match.rebuilt.push_back(*expert);
    }
    const auto flat = [](const RowShape& rows) { return !rows.batched && rows.columns > 0; };
    match.flatten = shapes_.at(tokens_).sizes.size() != 2 || !flat(claim.cut.weights_rows) ||
                    (claim.cut.choice && !flat(claim.cut.choice_rows));
    for (const Value* given : {match.tokens, match.ids, match.mask, match.weights}) {
      if (const Node* writer = given ? WriterAfterRead(given, claim.steps) : nullptr) {
        return Refused("what enters the experts must not be changed in place before their sum", writer);
      }
    }
    ConsumedNodes consumed = FindConsumed(flow_, units_, claim.steps, {candidate_.value, candidate_.step}, tokens_);
    if (consumed.kept) return Refused("what the experts compute must be used by their sum alone", consumed.kept);
    match.consumed = std::move(consumed.nodes);
    result.match = std::move(match);
    result.shown_identity = shown_identity_;
    return result;
  }

  // Modules that hold a feed-forward of the same tokens that is none of the experts'.
  std::vector<std::string> FindSharedExperts(const Claim& claim) const {
    std::vector<std::string> found;
    const std::set<int> experts(claim.units.begin(), claim.units.end());
    for (const auto& [node, index] : units_.by_output) {
      const ExpertFfn& unit = units_.units[index];
      const std::string module = CommonModule(unit.up.projection.weight.name, unit.down.weight.name);
      if (!experts.contains(units_.expert[index]) && !module.empty() && RootOfRows(unit.rows) == chain_.back())
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

  static Value* RootOfRows(Value* rows) {
    while (KeepsRows(rows->node())) rows = rows->node()->input(0);
    return rows;
  }

  // Inside of an expert, where no trial runs it.
  const Node* ForeignGuard(const Claim& claim) const {
    for (const int step : claim.steps) {
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
  const Node* WriterAfterRead(const Value* given, const std::set<int>& steps) const {
    const GraphFlow::Root root = flow_.RootOf(given);
    const auto reads = [&](int step) {
      const auto values = StepReads(step, flow_, units_);
      return std::any_of(values.begin(), values.end(), [&](const Value* read) { return flow_.RootOf(read) == root; });
    };
    const auto first = std::find_if(steps.begin(), steps.end(), reads);
    if (first == steps.end()) return nullptr;
    for (const int writer : flow_.Writers(root)) {
      const bool between = writer > flow_.StepOf(given) && writer >= *first && writer <= candidate_.step;
      if (between && !GuardsOnly(flow_.NodeAt(writer))) return flow_.NodeAt(writer);
    }
    return nullptr;
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

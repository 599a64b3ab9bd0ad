// SPDX-License-Identifier: Apache-2.0
// From a choice up to the gate's product, and down to the weights.
#include "passes/detect/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <unordered_set>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

constexpr size_t kMostRouterNodes = 400;  // the largest router of the known families has about 60

struct GateOperands {
  Value* input;
  Value* weight;
  bool out_in;
};

std::optional<GateOperands> MatchGate(Node* node) {
  if (node->kind() == aten::linear) return GateOperands{node->input(0), node->input(1), true};
  if (node->kind() == aten::matmul || node->kind() == aten::mm) return GateOperands{node->input(0), node->input(1), false};
  if (node->kind() == aten::addmm) return GateOperands{node->input(1), node->input(2), false};
  return std::nullopt;
}

// The gate may be computed in another dtype than it is stored in.
Value* StripCasts(Value* value) {
  while (value->node()->kind() == aten::to || value->node()->kind() == aten::type_as) value = value->node()->input(0);
  return value;
}

std::optional<Router> RouterWithGate(Node* node, const WeightFinder& weights) {
  const auto operands = MatchGate(node);
  if (!operands) return std::nullopt;
  Value* stored = operands->weight;
  bool swapped = false;
  // The cast may stand on either side of the transpose.
  stored = StripCasts(stored);
  if (stored->node()->kind() == aten::t || stored->node()->kind() == aten::transpose) {
    swapped = true;
    stored = StripCasts(stored->node()->input(0));
  }
  const auto weight = weights.Find(stored);
  if (!weight || weight->dim() != 2) return std::nullopt;
  const bool stored_out_in = operands->out_in != (swapped != weight->swapped);
  Router router;
  router.gate = node;
  router.input = operands->input;
  router.logits = router.num_experts = weight->tensor.size(stored_out_in ? 0 : 1);
  router.gate_dtype = weight->tensor.scalar_type();
  router.gate_weight = weight->name;
  return router;
}

}  // namespace

bool MayChoose(const Node* node) {
  return node->kind() == aten::topk || node->kind() == aten::argmax ||
         (node->kind() == aten::max && node->inputs().size() == 3 && node->outputs().size() == 2);
}

namespace {

Value* IndicesOf(Node* choice) { return choice->kind() == aten::argmax ? choice->output() : choice->output(1); }

// What the choice is made of.
Value* ChosenFrom(const Node* choice) {
  if (choice->kind() != aten::cat) return const_cast<Node*>(choice)->input(0);
  return ListElements(choice->input(0)).at(0)->node()->input(0);
}

// %ids = aten::cat([%first, %second], -1), the indices of maxima of [.., 1] each
bool JoinsMaxima(const Node* node) {
  if (node->kind() != aten::cat) return false;
  const std::vector<Value*> parts = ListElements(node->input(0));
  return parts.size() > 1 && std::all_of(parts.begin(), parts.end(), [](const Value* part) {
           const Node* maker = part->node();
           return MayChoose(maker) && maker->kind() != aten::topk && part == IndicesOf(const_cast<Node*>(maker));
         });
}

}  // namespace

bool IsChoice(const Value* value) {
  Node* node = const_cast<Node*>(value->node());
  return JoinsMaxima(node) || (MayChoose(node) && value == IndicesOf(node));
}

namespace {

std::optional<Router> FindRouter(Node* choice, const WeightFinder& weights) {
  std::deque<Node*> queue = {ChosenFrom(choice)->node()};
  std::unordered_set<Node*> seen;
  while (!queue.empty() && seen.size() < kMostRouterNodes) {
    Node* node = queue.front();
    queue.pop_front();
    if (node->kind() == prim::Param || !seen.insert(node).second) continue;
    if (auto router = RouterWithGate(node, weights)) {
      router->choice = choice;
      router->ids = choice->kind() == aten::cat ? choice->output() : IndicesOf(choice);
      return router;
    }
    for (Value* input : node->inputs()) queue.push_back(input->node());
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::vector<Router>> FindRouters(Graph& graph, const WeightFinder& weights) {
  std::vector<std::vector<Router>> groups;
  const auto add = [&](Node* choice) {
    const auto router = FindRouter(choice, weights);
    if (!router) return;
    const auto same = [&](const std::vector<Router>& group) { return group[0].gate == router->gate; };
    const auto at = std::find_if(groups.begin(), groups.end(), same);
    if (at == groups.end()) {
      groups.push_back({*router});
    } else {
      at->push_back(*router);
    }
  };
  for (const bool topks : {true, false}) {
    for (Node* node : graph.nodes()) {
      if (topks ? node->kind() == aten::topk : JoinsMaxima(node)) add(node);
    }
  }
  for (Node* node : graph.nodes()) {
    if (MayChoose(node) && node->kind() != aten::topk) add(node);
  }
  for (std::vector<Router>& group : groups) {
    group.push_back(group.back());
    group.back().ids = nullptr;
  }
  return groups;
}

namespace {

// The nodes on the way from `value` back to those that stop it.
template <typename Visit>
void WalkBack(const Value* value, const std::function<bool(const Node*)>& stops, Visit visit) {
  std::deque<const Node*> queue = {value->node()};
  std::unordered_set<const Node*> seen;
  while (!queue.empty() && seen.size() < kMostRouterNodes) {
    const Node* node = queue.front();
    queue.pop_front();
    if (stops(node) || node->kind() == prim::Param || !seen.insert(node).second) continue;
    visit(node);
    for (const Value* input : node->inputs()) queue.push_back(input->node());
  }
}

template <typename Visit>
void WalkBack(const Value* value, const Node* until, Visit visit) {
  WalkBack(value, std::function([until](const Node* node) { return node == until; }), visit);
}

bool IsStored(const Value* value) {
  while (value->node()->kind() == aten::unsqueeze || value->node()->kind() == aten::squeeze || value->node()->kind() == aten::to) {
    value = value->node()->input(0);
  }
  if (value->type()->kind() != c10::TypeKind::TensorType) return false;
  return value->node()->kind() == prim::GetAttr || value->node()->kind() == prim::Constant;
}

// A top-k on the way to the choice: of groups, where its indices are used, else of the best two in each group, which
// aten::view(%choice, [.., G, E / G]) tells apart.
void DescribeGroups(const Node* topk, std::map<std::string, std::string>& facts) {
  facts["groups"] = "true";
  if (!topk->outputs()[1]->uses().empty()) {
    if (const auto count = ConstInt(topk->inputs()[1])) facts["top_groups"] = fmt::to_string(*count);
  }
}

void DescribeGrouping(const Node* view, std::map<std::string, std::string>& facts) {
  const std::vector<Value*> sizes = ListElements(view->inputs()[1]);
  const auto groups = sizes.size() == 3 ? ConstInt(sizes[1]) : std::nullopt;
  if (groups) facts["num_groups"] = fmt::to_string(*groups);
}

// True if a node of this kind makes the count that a test compares, from what was chosen.
bool CountsBy(const Node* test, c10::Symbol kind, const Node* gate) {
  bool found = false;
  const std::function stops = [&](const Node* node) { return node == gate || MayChoose(node); };
  WalkBack(test->input(0), stops, [&](const Node* above) { found |= above->kind() == kind; });
  return found;
}

// %kept = aten::lt(%count, C) or aten::le(%count, C), where %count is made by aten::cumsum.
bool IsCapacityTest(const Node* node, const Node* gate) {
  if (node->kind() != aten::lt && node->kind() != aten::le) return false;
  return ConstNumber(node->input(1)) && CountsBy(node, aten::cumsum, gate);
}

}  // namespace

std::map<std::string, std::string> DescribeRouter(const Router& router, const Value* choice, const Value* weights) {
  std::map<std::string, std::string> facts = {{"scores", "none"}, {"renorm", "false"}, {"bias", "false"}, {"groups", "false"}};
  WalkBack(ChosenFrom(router.choice), router.gate, [&](const Node* node) {
    if (node->kind() == aten::softmax) facts["scores"] = "softmax";
    if (node->kind() == aten::sigmoid) facts["scores"] = "sigmoid";
    if (node->kind() == aten::add && (IsStored(node->input(0)) || IsStored(node->input(1)))) facts["bias"] = "true";
    if (node->kind() == aten::topk) DescribeGroups(node, facts);
    if (node->kind() == aten::view) DescribeGrouping(node, facts);
  });
  if (facts["groups"] == "false") facts.erase("num_groups");
  std::unordered_set<const Node*> selection;
  WalkBack(ChosenFrom(router.choice), nullptr, [&](const Node* node) { selection.insert(node); });
  WalkBack(weights, router.choice, [&](const Node* node) {
    if (selection.contains(node)) return;
    if (node->kind() == aten::softmax) facts["renorm"] = "softmax";
    if ((node->kind() == aten::div || node->kind() == aten::div_) && node->input(1)->node()->kind() != prim::Constant) {
      facts["renorm"] = "true";
    }
    const auto factor = node->kind() == aten::mul || node->kind() == aten::mul_ ? ConstNumber(node->input(1)) : std::nullopt;
    if (factor) facts["scale"] = fmt::format("{}", *factor);
  });
  for (const Node* test : FindCapacityTests(router, choice, weights)) {
    facts["capacity"] = fmt::format("{}", *ConstNumber(test->input(1)));
    // All first choices are added up.
    if (CountsBy(test, aten::sum, router.gate)) facts["second_choices"] = "last";
  }
  return facts;
}

std::vector<Node*> FindCapacityTests(const Router& router, const Value* choice, const Value* weights) {
  std::vector<Node*> tests;
  for (const Value* value : {choice, weights}) {
    if (!value) continue;
    WalkBack(value, router.gate, [&](const Node* node) {
      if (IsCapacityTest(node, router.gate) && std::find(tests.begin(), tests.end(), node) == tests.end())
        tests.push_back(const_cast<Node*>(node));
    });
  }
  return tests;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// From the region's last step to its first: a step goes if all who read it go.
#include "passes/detect/consumed.h"

#include <algorithm>

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;

namespace {

class Consumption {
 public:
  Consumption(const GraphFlow& flow, const ExpertUnits& units, const ReplacedSum& sum, const Value* tokens)
      : flow_(flow), units_(units), sum_(sum), tokens_(tokens) {}

  ConsumedNodes Find(const std::set<int>& region) {
    const std::set<int> owned = StepsOfUnits(region);
    std::set<int> steps = region;
    steps.insert(owned.begin(), owned.end());
    ConsumedNodes found;
    for (auto at = steps.rbegin(); at != steps.rend(); ++at) {
      Node* node = flow_.NodeAt(*at);
      const bool own = owned.contains(*at);
      if (!own && (node->kind() == prim::Constant || node->kind() == prim::GetAttr)) continue;
      const bool read = IsRead(*at);
      if (read && own) return {{}, node};
      if (!read) consumed_.insert(*at);
    }
    for (const int step : consumed_) AddWithInner(flow_.NodeAt(step), found.nodes);
    return found;
  }

 private:
  std::set<int> StepsOfUnits(const std::set<int>& region) const {
    std::set<int> owned;
    for (const int step : region) {
      const auto inside = units_.by_step.find(step);
      if (inside == units_.by_step.end()) continue;
      for (const int unit : inside->second) {
        for (const Node* node : units_.units[unit].nodes) owned.insert(flow_.StepOf(node));
      }
    }
    return owned;
  }

  bool IsRead(int step) const {
    const auto& outputs = flow_.NodeAt(step)->outputs();
    if (std::any_of(outputs.begin(), outputs.end(), [&](const Value* value) { return value == tokens_ || IsReadElsewhere(value, step); })) {
      return true;
    }
    for (const GraphFlow::Root root : flow_.Writes(step)) {
      for (const Value* alias : flow_.Values(root)) {
        if (flow_.StepOf(alias) <= step && IsReadElsewhere(alias, step)) return true;
      }
    }
    return false;
  }

  bool IsReadElsewhere(const Value* value, int after) const {
    return std::any_of(value->uses().begin(), value->uses().end(), [&](const auto& use) {
      const int step = flow_.StepOf(use.user);
      if (step <= after || consumed_.contains(step)) return false;
      return value != sum_.value || step <= sum_.step;
    });
  }

  static void AddWithInner(Node* node, std::vector<Node*>& nodes) {
    nodes.push_back(node);
    for (Block* block : node->blocks()) {
      for (Node* inner : block->nodes()) {
        if (inner->kind() != prim::Constant) AddWithInner(inner, nodes);
      }
    }
  }

  const GraphFlow& flow_;
  const ExpertUnits& units_;
  const ReplacedSum& sum_;
  const Value* tokens_;
  std::set<int> consumed_;
};

}  // namespace

ConsumedNodes FindConsumed(const GraphFlow& flow, const ExpertUnits& units, const std::set<int>& steps, const ReplacedSum& sum,
                           const Value* tokens) {
  return Consumption(flow, units, sum, tokens).Find(steps);
}

}  // namespace autoep

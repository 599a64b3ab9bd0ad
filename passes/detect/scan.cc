// SPDX-License-Identifier: Apache-2.0
// One pass over the steps behind a router, with two taints a storage root: the choice, and a group of units.
#include "passes/detect/scan.h"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;

namespace {

class Scanner {
 public:
  Scanner(const Router& router, const GraphFlow& flow, const ExpertUnits& units, int64_t least_units)
      : router_(router), flow_(flow), units_(units), least_units_(least_units), group_(units.units.size()), members_(units.units.size()) {
    for (size_t i = 0; i < group_.size(); ++i) {
      group_[i] = static_cast<int>(i);
      members_[i] = {static_cast<int>(i)};
    }
    const GraphFlow::Root first = flow.RootOf(router.ids ? router.ids : router.gate->output());
    chosen_.insert(first);
    chosen_until_ = flow.LastUse(first);
  }

  ScanResult Scan(const std::function<bool(const SumCandidate&)>& take) {
    // Experts may have run on all tokens before the router: begin where the gate's input is made.
    const int choice = router_.ids ? flow_.StepOf(router_.ids) : flow_.StepOf(router_.gate);
    for (int step = std::max(flow_.StepOf(router_.input), 0); step < flow_.size(); ++step) {
      if (!Visit(step)) break;
      if (step < choice) continue;
      Expire(step);
      if (live_.empty() && chosen_until_ <= step) break;
      const auto candidate = Candidate(step);
      if (candidate && take(*candidate)) break;
    }
    return result_;
  }

 private:
  int Group(int unit) {
    while (group_[unit] != unit) unit = group_[unit] = group_[group_[unit]];
    return unit;
  }

  int Join(int a, int b) {
    if (a < 0 || b < 0) return std::max(a, b);
    a = Group(a);
    b = Group(b);
    if (a == b) return a;
    if (members_[a].size() < members_[b].size()) std::swap(a, b);
    group_[b] = a;
    members_[a].insert(members_[a].end(), members_[b].begin(), members_[b].end());
    members_[b].clear();
    return a;
  }

  void Read(GraphFlow::Root root, bool& chosen, int& group) {
    chosen |= chosen_.contains(root);
    const auto at = fed_.find(root);
    if (at != fed_.end()) group = Join(group, at->second);
    for (const GraphFlow::Root element : flow_.Elements(root)) {
      if (element != root) Read(element, chosen, group);
    }
  }

  void Taint(GraphFlow::Root root, bool chosen, int group) {
    if (chosen && chosen_.insert(root).second) chosen_until_ = std::max(chosen_until_, flow_.LastUse(root));
    if (group >= 0) {
      const auto at = fed_.emplace(root, group).first;
      at->second = Join(at->second, group);
      if (chosen_.contains(root)) live_.insert(root);
    }
  }

  // False where the scan must end.
  bool Visit(int step) {
    Node* node = flow_.NodeAt(step);
    bool chosen = false;
    int group = -1;
    for (const Value* read : flow_.Reads(step)) Read(flow_.RootOf(read), chosen, group);
    if (!IsExplained(node, units_)) {
      // Before the sum the choice may go elsewhere, as into a loss; but not together with experts' outputs.
      if (chosen && !result_.unknown && HasWeight(node)) result_.unknown = node;
      if (!chosen) return true;
      if (group < 0) {
        // Where the choice is not known, all that the logits become is taken for it.
        if (!router_.ids) TaintAll(step, chosen, group);
        return true;
      }
      result_.stop = node;
      return false;
    }
    const auto inside = units_.by_step.find(step);
    if (inside != units_.by_step.end()) {
      for (const int unit : inside->second) group = Join(group, unit);
    }
    if (!chosen && group < 0) return true;
    if (chosen && group >= 0) {
      result_.met_experts = true;
      result_.units = std::max(result_.units, static_cast<int>(members_[Group(group)].size()));
    }
    TaintAll(step, chosen, group);
    return true;
  }

  void TaintAll(int step, bool chosen, int group) {
    for (const Value* output : flow_.NodeAt(step)->outputs()) Taint(flow_.RootOf(output), chosen, group);
    for (const GraphFlow::Root root : flow_.Writes(step)) Taint(root, chosen, group);
  }

  static bool HasWeight(const Node* node) {
    static const auto kGroupedMm = c10::Symbol::fromQualString("aten::_grouped_mm");
    return node->kind() == c10::aten::linear || node->kind() == c10::aten::addmm || node->kind() == kGroupedMm;
  }

  void Expire(int step) {
    for (auto at = live_.begin(); at != live_.end();) at = flow_.LastUse(*at) <= step ? live_.erase(at) : std::next(at);
  }

  std::optional<SumCandidate> Candidate(int step) {
    if (live_.size() != 1) return std::nullopt;
    const GraphFlow::Root root = *live_.begin();
    const int group = Group(fed_.at(root));
    const bool all = units_.units[members_[group].front()].stacked();
    if (!all && static_cast<int64_t>(members_[group].size()) < least_units_) return std::nullopt;
    Value* read_later = nullptr;
    for (Value* value : flow_.Values(root)) {
      if (flow_.StepOf(value) > step) continue;
      const bool later =
          std::any_of(value->uses().begin(), value->uses().end(), [&](const auto& use) { return flow_.StepOf(use.user) > step; });
      if (!later) continue;
      if (read_later) return std::nullopt;
      read_later = value;
    }
    if (!read_later) return std::nullopt;
    // Each content of each value once.
    const std::pair<Value*, int> content = {read_later, DefinitionStep(read_later, step + 1, flow_)};
    if (content == last_) return std::nullopt;
    last_ = content;
    return SumCandidate{read_later, step, members_[group]};
  }

  const Router& router_;
  const GraphFlow& flow_;
  const ExpertUnits& units_;
  const int64_t least_units_;
  std::vector<int> group_;                  // union-find over units
  std::vector<std::vector<int>> members_;
  std::set<GraphFlow::Root> chosen_;              // depend on the choice
  std::unordered_map<GraphFlow::Root, int> fed_;  // depend on a unit of this group
  std::set<GraphFlow::Root> live_;                // depend on both, and are read later
  int chosen_until_ = -1;                         // the last step that reads one of them
  std::pair<Value*, int> last_ = {nullptr, -1};
  ScanResult result_;
};

}  // namespace

ScanResult ScanForSum(const Router& router, const GraphFlow& flow, const ExpertUnits& units, int64_t least_units,
                      const std::function<bool(const SumCandidate&)>& take) {
  return Scanner(router, flow, units, least_units).Scan(take);
}

}  // namespace autoep

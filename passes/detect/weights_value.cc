// SPDX-License-Identifier: Apache-2.0
// Cut values of the dataflow from the logits to the sum, found by walking back with a frontier of steps.
#include "passes/detect/weights_value.h"

#include <unordered_map>

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;

namespace {

class LogitsTaint {
 public:
  LogitsTaint(const Router& router, const Value* choice, const GraphFlow& flow, const ExpertUnits& units,
              const std::set<int>& steps)
      : flow_(flow), choice_(choice ? flow.RootOf(choice) : -1) {
    roots_.insert(flow.RootOf(router.gate->output()));
    for (const int step : steps) {
      bool reads = false;
      for (const Value* read : StepReads(step, flow, units)) reads |= Contains(read);
      if (!reads || TakesShapeOnly(flow.NodeAt(step))) continue;
      for (const Value* output : flow.NodeAt(step)->outputs()) Add(flow.RootOf(output));
      for (const GraphFlow::Root root : flow.Writes(step)) Add(root);
    }
  }

  bool Contains(const Value* value) const {
    const GraphFlow::Root root = flow_.RootOf(value);
    if (roots_.contains(root)) return true;
    for (const GraphFlow::Root element : flow_.Elements(root)) {
      if (roots_.contains(element)) return true;
    }
    return false;
  }

 private:
  // The choice is a boundary of its own.
  void Add(GraphFlow::Root root) {
    if (root != choice_) roots_.insert(root);
  }

  const GraphFlow& flow_;
  GraphFlow::Root choice_;
  std::set<GraphFlow::Root> roots_;
};

}  // namespace

std::vector<Value*> FindWeightsCandidates(Value* out, int at, const Router& router, const Value* choice, const GraphFlow& flow,
                                          const ExpertUnits& units, const std::set<int>& steps) {
  const LogitsTaint taint(router, choice, flow, units, steps);
  std::vector<Value*> candidates;
  std::set<int> frontier;
  std::unordered_map<int, Value*> read_as;  // null: by more than one name
  const auto push = [&](Value* value, int reader) {
    const int step = DefinitionStep(value, reader, flow);
    if (step < 0 || TakesShapeOnly(flow.NodeAt(step))) return;
    frontier.insert(step);
    const auto known = read_as.emplace(step, value).first;
    if (known->second != value) known->second = nullptr;
  };
  push(out, at + 1);
  while (!frontier.empty()) {
    const int step = *frontier.rbegin();
    frontier.erase(step);
    Value* value = read_as.at(step);
    if (frontier.empty() && value && value != out) candidates.push_back(value);
    if (flow.NodeAt(step) == router.gate) continue;
    for (Value* read : StepReads(step, flow, units)) {
      if (taint.Contains(read)) push(read, step);
    }
  }
  return candidates;
}

}  // namespace autoep

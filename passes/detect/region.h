// SPDX-License-Identifier: Apache-2.0
// The part of a graph between a router's values and the experts' weighted sum: which steps it takes, and which ops may
// stand there.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "passes/detect/ffn.h"
#include "passes/detect/flow.h"

namespace autoep {

// The experts' feed-forwards of a graph, found once, by the nodes they own.
struct ExpertUnits {
  std::vector<ExpertFfn> units;
  std::vector<int> expert;  // of each unit in by_output: the first one with the same weights; -1 for others
  std::unordered_map<const torch::jit::Node*, int> by_output;  // the node that makes a unit's output
  std::unordered_set<const torch::jit::Node*> inner;           // every node of a unit, output included
  std::unordered_map<int, std::vector<int>> by_step;           // units whose output is made in a step
};

ExpertUnits FindUnits(torch::jit::Graph& graph, const GraphFlow& flow, const WeightFinder& weights);

// True for ops that move rows, make index arithmetic, or combine linearly: what may stand between router and sum (see
// proof.h). Nested blocks must hold such ops and whole units only.
bool IsExplained(const torch::jit::Node* node, const ExpertUnits& units);

// True for ops that take from their first input its sizes, dtype or device, and no number in it.
bool TakesShapeOnly(const torch::jit::Node* node);

struct Closure {
  std::set<int> steps;
  std::set<const torch::jit::Value*> shapes;  // of options.shapes, those met
  torch::jit::Node* foreign = nullptr;        // the first node met that may not be there; null: the closure is complete
};

struct ClosureOptions {
  std::set<const torch::jit::Value*> boundary;  // values that are given
  int first_step = -1;                          // steps before it may only be constants and attributes
  bool explained_only = true;
  std::set<const torch::jit::Value*> shapes;  // values that are given to ops that take their shape only
};

// All steps that `value`, read after step `at`, depends on: makers and writers, down to the boundary.
Closure FindClosure(torch::jit::Value* value, int at, const GraphFlow& flow, const ExpertUnits& units,
                    const ClosureOptions& options);

// What a step reads: for a step that is a unit's output, the unit's rows and choice.
std::vector<torch::jit::Value*> StepReads(int step, const GraphFlow& flow, const ExpertUnits& units);

// The last step that made or wrote `value` before step `at`; -1 for graph inputs.
int DefinitionStep(const torch::jit::Value* value, int at, const GraphFlow& flow);

}  // namespace autoep

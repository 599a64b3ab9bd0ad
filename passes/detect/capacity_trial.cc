// SPDX-License-Identifier: Apache-2.0
// Two best experts, in one order or by turns in both: then the second choices of each come behind the first ones of half the
// tokens.
#include "passes/detect/capacity_trial.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <set>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;

namespace {

constexpr int64_t kMostTokens = 1 << 16;

at::Tensor Logits(int64_t tokens, int64_t experts, bool by_turns) {
  at::Tensor logits = at::zeros({tokens, experts});
  logits.select(1, 0).fill_(4.0);
  logits.select(1, 1).fill_(2.0);
  if (by_turns) {
    const at::Tensor odd = logits.slice(0, 1, std::nullopt, 2);
    odd.select(1, 0).fill_(2.0);
    odd.select(1, 1).fill_(4.0);
  }
  return logits;
}

class Trials {
 public:
  Trials(const Stage& stage, const GraphFlow& flow, const std::vector<Node*>& tests, size_t rank)
      : stage_(stage), flow_(flow), tests_(tests), rank_(rank) {
    ClosureOptions options;
    options.boundary = {stage.router->gate->output()};
    options.explained_only = false;
    for (Node* test : tests) {
      const Closure closure = FindClosure(test->output(), flow.StepOf(test), flow, *stage.units, options);
      possible_ &= closure.foreign == nullptr;
      steps_.insert(closure.steps.begin(), closure.steps.end());
    }
  }

  bool possible() const { return possible_; }

  // How many of the tests let every count pass.
  size_t Passing(int64_t tokens, bool by_turns) const {
    const at::NoGradGuard no_grad;
    const Interpreter::Stands stands;
    Interpreter run(*stage_.self, *stage_.graph, stands);
    at::Tensor logits = Logits(tokens, stage_.router->logits, by_turns);
    if (rank_ == 3) logits = logits.unsqueeze(0);
    run.Set(stage_.router->gate->output(), logits.to(stage_.router->gate_dtype));
    for (const int step : steps_) run.Run(flow_.NodeAt(step));
    return std::count_if(tests_.begin(), tests_.end(),
                         [&](const Node* test) { return run.Get(test->output()).toTensor().all().item().toBool(); });
  }

 private:
  const Stage& stage_;
  const GraphFlow& flow_;
  const std::vector<Node*>& tests_;
  const size_t rank_;
  std::set<int> steps_;
  bool possible_ = true;
};

// Nullopt where the tests are of several numbers.
std::optional<int64_t> CapacityOf(const std::vector<Node*>& tests) {
  std::optional<double> capacity;
  for (const Node* test : tests) {
    const auto number = ConstNumber(test->input(1));
    if (!number || (capacity && capacity != number)) return std::nullopt;
    capacity = number;
  }
  if (!capacity || *capacity < 1 || *capacity > kMostTokens || *capacity != static_cast<double>(static_cast<int64_t>(*capacity)))
    return std::nullopt;
  return static_cast<int64_t>(*capacity);
}

}  // namespace

bool CountsTokens(const Stage& stage, const GraphFlow& flow, const std::vector<Node*>& tests, size_t logits_rank) {
  const auto capacity = CapacityOf(tests);
  const Trials trials(stage, flow, tests, logits_rank);
  if (!capacity || !trials.possible() || stage.router->logits < 2) return false;
  try {
    return trials.Passing(*capacity, false) == tests.size() && trials.Passing(*capacity, true) == tests.size() &&
           trials.Passing(*capacity + 1, false) == 0;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace autoep

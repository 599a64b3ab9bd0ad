// SPDX-License-Identifier: Apache-2.0
// ExpertFfn: the feed-forward of one expert, or of all in a stacked form, verified node by node.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <string>
#include <vector>

#include "passes/detect/form.h"

namespace autoep {

// Rows of a projection's output: all of them, or every step-th from `begin`.
struct RowRange {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t step = 1;
  bool operator==(const RowRange&) const = default;
};

struct Half {  // gate or up: rows of a projection
  Projection projection;
  RowRange rows;
};

// output = scale * down(act(gate(rows)) * up(rows)), or scale * down(act(up(rows))).
struct ExpertFfn {
  Projection down;
  std::optional<Half> gate;  // none: not gated
  Half up;
  std::string activation;    // contract/activation.h
  std::vector<double> activation_args;
  double scale = 1.0;
  torch::jit::Value* rows = nullptr;
  torch::jit::Value* output = nullptr;
  std::vector<torch::jit::Node*> nodes;  // all between rows and output, output's node first, and those of the weights

  const ExpertForm& form() const { return *down.form; }
  // One unit stands for all experts: rows, or an index that is no constant, choose from a stacked tensor.
  bool stacked() const { return form().stacked || down.weight.selected; }
  // Values, besides rows, that say which expert a row meets.
  std::vector<torch::jit::Value*> Choices() const;
  // Every expert at once, in a dimension of its own.
  bool dense() const { return down.out_expert_dim >= 0; }
  int64_t hidden() const { return down.out(); }
  int64_t intermediate() const { return down.in(); }
  at::ScalarType dtype() const { return down.weight.tensor.scalar_type(); }
};

// The feed-forward that ends in `output`, or nullopt. Looks at the nodes above only as far as the pattern goes.
std::optional<ExpertFfn> MatchFfn(torch::jit::Value* output, const WeightFinder& weights);

}  // namespace autoep

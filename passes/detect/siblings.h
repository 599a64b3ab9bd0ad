// SPDX-License-Identifier: Apache-2.0
// The experts that a baked loop left out, rebuilt from their modules in the likeness of one that it holds.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>
#include <vector>

#include "passes/detect/served.h"

namespace autoep {

struct AllExperts {
  std::vector<ExpertFfn> experts;  // by number; one where the weights are stacked
  std::vector<int64_t> identity;   // numbers of those that answer the token itself, as modules say; behind all others
  std::string failure;             // why they cannot be known, a sentence; "" otherwise
};

// Experts that the graph holds are its feed-forwards. Each other must be a module of the same classes as that of one the graph
// holds, with tensors of the same names, shapes and dtypes and the same numbers, and without code: a trace gives code to what it
// ran alone. Modules of torch's Identity answer the token itself; so do the experts for whom stacked weights hold nothing, where
// such a module stands beside the weights.
AllExperts CollectExperts(const torch::jit::Module& self, const ServedExperts& served, const ExpertUnits& units,
                          const WeightFinder& weights);

}  // namespace autoep

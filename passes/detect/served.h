// SPDX-License-Identifier: Apache-2.0
// ServedExperts: what a loop over experts that was baked at trace time can serve: which experts the graph holds, and how many
// rows, or how many different experts, a call must bring for the graph to work at all.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "passes/detect/ffn.h"
#include "passes/detect/region.h"
#include "passes/detect/router.h"

namespace autoep {

inline constexpr int64_t kAnyRows = -1;  // at least one

struct ServedExperts {
  int64_t total = 0;                // experts of the router
  int64_t count = 0;                // different experts that a call must choose
  std::vector<int64_t> experts;     // their numbers, ascending; empty: any `count` of them
  std::vector<int64_t> rows;        // rows that each expert must get, [total], or kAnyRows; empty: at least one each
  std::vector<int> units;           // ExpertUnits::expert of the loop's feed-forwards, ascending, each once
  std::vector<int> members;         // the same feed-forwards, each of them: positions in ExpertUnits::units
  std::vector<int> unit_of_expert;  // [total], -1 where the graph holds none; empty where one stacked unit answers
  std::string pattern;              // "experts.#.down_proj.weight", the last matrix, "#" for the number; "" if not numbered
};

// The loops over experts of a graph, each with what it can serve, by what tells its experts apart: the number in the module
// path, a constant index into a stacked weight, an index that the graph computes, constant group sizes. Not those of
// feed-forwards whose weights are a frozen graph's constants.
std::vector<ServedExperts> FindServedExperts(const torch::jit::Module& self, const Router& router, const ExpertUnits& units);

// Feed-forwards whose weights are constants of a frozen graph, as a loop if there is one for each expert.
std::optional<ServedExperts> FrozenLoop(const Router& router, const ExpertUnits& units, const std::vector<int>& members);

// The name of expert `e`'s tensor, given the name of one expert's: the component that counts the experts is the last whose
// siblings are numbered 0 to total - 1 and no further. "" where there is none. `number` receives the given name's.
std::string NumberedPattern(const torch::jit::Module& self, const std::string& name, int64_t total, int64_t* number);
std::string NumberedName(const std::string& pattern, int64_t number);
// Up to the number: the expert's own module, or its tensor in a list of tensors.
std::string NumberedPath(const std::string& pattern, int64_t number);

// How many experts a token chooses at most, as the router's node says; 0 where that is no constant.
int64_t MostChoices(const Router& router);

struct ServedChoice {
  int64_t batch = 1;
  int64_t length = 1;
  std::vector<int64_t> ids;  // [batch * length, top_k], distinct in a row
};

// A choice of experts that the graph can serve. `tokens` is a wish: constant rows allow some numbers only. Throws c10::Error
// where there is none.
ServedChoice MakeServedChoice(const ServedExperts& served, int64_t top_k, int64_t tokens, std::mt19937& random);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// ProofMemory: what evaluation found out about a graph, for the graphs that are equal to it: the blocks of a model mostly are.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "passes/detect/proof.h"

namespace autoep {

// An answer, or the sentence of what was thrown instead.
template <typename Answer>
struct Remembered {
  Answer answer = {};
  std::string error;
};

class ProofMemory {
 public:
  // Of equal graphs. Keys say what was asked; values of a graph are told by their places.
  struct Answers {
    std::map<std::string, Remembered<std::vector<std::pair<std::pair<int, size_t>, Shape>>>> shapes;
    std::map<std::string, Remembered<std::vector<int>>> units;
    std::map<std::string, Remembered<std::string>> claims;
  };

  Answers& Of(const std::string& text) { return graphs_[text]; }

 private:
  std::map<std::string, Answers> graphs_;
};

// The questions of proof.h about one graph, each evaluated where the memory has no answer. Without a memory, and of baked
// loops, whose modules a text does not tell, all are.
class Proofs {
 public:
  Proofs(const torch::jit::Graph& graph, const torch::jit::Module& self, const GraphFlow& flow, ProofMemory* memory)
      : graph_(graph), self_(self), flow_(flow), memory_(memory) {}

  ShapeTable InferShapes(const Stage& stage, const std::set<int>& steps) const;
  std::vector<int> FindUnitOfExpert(const Claim& claim) const;
  std::string CheckClaim(const Claim& claim, const std::vector<int>& unit_of_expert) const;

 private:
  ProofMemory::Answers* Known(const Stage& stage) const;

  const torch::jit::Graph& graph_;
  const torch::jit::Module& self_;
  const GraphFlow& flow_;
  ProofMemory* memory_;
  mutable ProofMemory::Answers* known_ = nullptr;  // once asked for
};

}  // namespace autoep

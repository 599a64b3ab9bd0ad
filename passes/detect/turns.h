// SPDX-License-Identifier: Apache-2.0
// Turns: what trials saw of the ops whose answer turns at a number: comparisons, minima, cuts, divisions without rest, tests for
// zero. Between two turns a region's arithmetic is linear in the number of tokens; so where each turn was seen from both sides,
// or more tokens lead away from it, no number of tokens meets a limit that no trial met. What the numbers are made of
// (constants, attributes, sizes, products of them) does not matter: their values in the trial are taken.
#pragma once

#include <ATen/core/stack.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <limits>
#include <map>
#include <utility>

namespace autoep {

class Turns {
 public:
  // One run of `node`. Throws c10::Error for an op whose turns are not told.
  void See(const torch::jit::Node* node, const torch::jit::Stack& inputs, const torch::jit::Stack& outputs);
  void Add(const Turns& others);

  // A node that must have been seen on both sides and was not, or null: one that compares data, or numbers that passed each
  // other without being equal.
  const torch::jit::Node* Missed() const;
  // A node whose turn was not seen, and which is nearer to it than it was when this was `before`; null if there is none.
  const torch::jit::Node* Approached(const Turns& before) const;

 private:
  // Where the answer turns as the distance goes from negative to positive.
  enum class At { kZeroAndMore, kMore, kEqual, kBothSides };
  struct Sides {
    At at = At::kEqual;
    bool data = false;
    bool below = false, equal = false, above = false;
    double nearest = std::numeric_limits<double>::infinity();
    bool turned() const;
  };
  using Place = std::pair<const torch::jit::Node*, int>;  // an op may turn for several reasons

  // The first in the graph of which that holds and whose turn was not seen.
  const torch::jit::Node* First(const std::function<bool(Place, const Sides&)>& holds) const;
  void Record(Place place, At at, const at::Tensor& distance, bool data = false);
  void SeeComparison(const torch::jit::Node* node, At at, const torch::jit::Stack& inputs);
  void SeeRange(const torch::jit::Node* node, const c10::IValue& first, const c10::IValue& last, const c10::IValue& step);
  void SeeSlice(const torch::jit::Node* node, const torch::jit::Stack& inputs);
  void SeeCount(const torch::jit::Node* node, const at::Tensor& made);
  void SeeCast(const torch::jit::Node* node, const at::Tensor& from, const at::Tensor& to);

  std::map<Place, Sides> seen_;
};

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// HostScalars: tensors of a trace that are numbers and stay on the CPU wherever the model runs: sizes, and what is computed
// from them.
#pragma once

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_set>
#include <vector>

namespace autoep {

class HostScalars {
 public:
  // `functions`: all that can be reached, so that every call of each is seen.
  explicit HostScalars(const std::vector<torch::jit::GraphFunction*>& functions);

  // Of a graph's input: whether some call gives it such a number.
  bool Contains(const torch::jit::Value* value) const { return values_.contains(value); }

 private:
  bool Visit(torch::jit::Block* block);
  bool VisitCall(torch::jit::Node* node);
  bool MakesScalar(const torch::jit::Node* node) const;

  std::unordered_set<const torch::jit::Value*> values_;
};

}  // namespace autoep

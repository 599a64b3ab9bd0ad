// SPDX-License-Identifier: Apache-2.0
// Interpreter: runs chosen nodes of a graph on small made-up tensors, one node after the other, with the ops' own kernels.
#pragma once

#include <ATen/core/stack.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <optional>
#include <unordered_map>

namespace autoep {

class Interpreter {
 public:
  // Runs in place of a node, and must set its outputs. Nodes mapped to nullptr are passed over.
  using Stand = std::function<void(Interpreter&, torch::jit::Node*)>;
  using Stands = std::unordered_map<const torch::jit::Node*, Stand>;
  // Sees each op that has run, with what it took and gave.
  using Watch = std::function<void(torch::jit::Node*, const torch::jit::Stack&, const torch::jit::Stack&)>;

  // `self` answers prim::GetAttr; tensors of floats are answered by made-up ones of their shape, so that no weight is read.
  Interpreter(const torch::jit::Module& self, torch::jit::Graph& graph, const Stands& stands);

  void Set(const torch::jit::Value* value, c10::IValue ivalue) { values_[value] = std::move(ivalue); }
  void SetWatch(Watch watch) { watch_ = std::move(watch); }
  bool Has(const torch::jit::Value* value) const { return values_.contains(value); }
  // Constants need not be run. Throws c10::Error if the value is not there.
  c10::IValue Get(const torch::jit::Value* value);
  // Runs one node and its blocks. Throws c10::Error where an op does, or where a loop does not end.
  void Run(torch::jit::Node* node);

 private:
  void RunBlock(torch::jit::Block* block);
  void RunIf(torch::jit::Node* node);
  void RunLoop(torch::jit::Node* node);
  void RunOp(torch::jit::Node* node);

  const Stands& stands_;
  Watch watch_;
  std::unordered_map<const torch::jit::Value*, c10::IValue> values_;
};

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// GraphFlow: who reads and writes which storage, step by step, in one pass over a prepared graph. A step is one node of the
// top block, with all that its nested blocks do.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <vector>

namespace autoep {

class GraphFlow {
 public:
  // Values that may share storage (views, in-place results, what control flow merges) have one root.
  using Root = int;

  explicit GraphFlow(torch::jit::Graph& graph);

  int size() const { return static_cast<int>(steps_.size()); }
  torch::jit::Node* NodeAt(int step) const { return steps_[step].node; }
  // The step that makes a value, or in which a node runs; -1 for graph inputs, size() for the graph's return.
  int StepOf(const torch::jit::Value* value) const;
  int StepOf(const torch::jit::Node* node) const;

  Root RootOf(const torch::jit::Value* value) const;
  // Values from outside the step that it reads; includes what it writes in place.
  const std::vector<torch::jit::Value*>& Reads(int step) const { return steps_[step].reads; }
  const std::vector<Root>& Writes(int step) const { return steps_[step].writes; }
  const std::vector<int>& Writers(Root root) const { return roots_[Find(root)].writers; }  // steps, ascending
  int LastUse(Root root) const { return roots_[Find(root)].last_use; }                    // size() if the graph returns it
  const std::vector<torch::jit::Value*>& Values(Root root) const { return roots_[Find(root)].values; }
  // Roots of the elements of a list with this root.
  const std::vector<Root>& Elements(Root root) const { return roots_[Find(root)].elements; }
  // The last step before `step` that wrote to the root, or -1.
  int LastWriterBefore(Root root, int step) const;

 private:
  struct Step {
    torch::jit::Node* node = nullptr;
    std::vector<torch::jit::Value*> reads;
    std::vector<Root> writes;
  };
  struct RootInfo {
    Root parent = 0;
    int last_use = -1;
    std::vector<int> writers;
    std::vector<torch::jit::Value*> values;
    std::vector<Root> elements;
  };

  Root Find(Root root) const;
  Root NewRoot();
  void Define(torch::jit::Value* value, int step, Root root);
  void Merge(Root a, Root b);
  void Visit(torch::jit::Node* node, int step);
  void VisitBlock(torch::jit::Block* block, int step);
  void VisitOutputs(torch::jit::Node* node, int step);
  void Write(Root root, int step);

  std::vector<Step> steps_;
  mutable std::vector<RootInfo> roots_;
  std::vector<Root> root_of_;  // by Value::unique()
  std::vector<int> step_of_;
  std::unordered_map<const torch::jit::Node*, int> bare_;  // steps without outputs
};

}  // namespace autoep

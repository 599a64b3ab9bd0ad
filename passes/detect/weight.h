// SPDX-License-Identifier: Apache-2.0
// Weight: a model tensor on its way to a matrix product: by which name it is stored, and what was done to it.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace autoep {

struct Weight {
  std::string name;   // fully qualified below the graph's module, or "constant:<n>"
  at::Tensor tensor;  // as stored; a stack [E * rows, C] that the graph views as [E, rows, C], as that
  bool swapped = false;                     // the last two dimensions were exchanged
  torch::jit::Value* selected = nullptr;    // the index chosen along dimension 0 of a stacked tensor, if it is no constant
  std::optional<int64_t> at;                // the same, if it is
  std::vector<torch::jit::Node*> nodes;     // from the stored tensor to the product

  // Dimensions of what reaches the product.
  int64_t dim() const { return tensor.dim() - (selected || at ? 1 : 0); }
};

// Finds the stored tensor behind a value, through t, transpose of the last two dimensions, a view that splits the first
// dimension, and one entry of the first: by select, index, unbind, or chunks and splits of one entry each.
class WeightFinder {
 public:
  WeightFinder(const torch::jit::Module& self, torch::jit::Graph& graph);

  std::optional<Weight> Find(torch::jit::Value* value) const;

 private:
  std::optional<Weight> FindAttribute(torch::jit::Value* value) const;
  std::optional<Weight> FindSplit(torch::jit::Node* view) const;
  std::optional<Weight> FindEntry(torch::jit::Value* stack, torch::jit::Value* index, int64_t at) const;
  std::optional<Weight> FindUnpacked(torch::jit::Value* value) const;
  std::optional<Weight> FindIndexed(torch::jit::Node* index) const;
  std::optional<Weight> FindItem(torch::jit::Node* item) const;
  // Numbers that are constants, or attributes of a module.
  std::optional<int64_t> FindInt(const torch::jit::Value* value) const;
  std::optional<std::vector<int64_t>> FindInts(const torch::jit::Value* value) const;

  torch::jit::Module self_;
  std::unordered_map<const torch::jit::Value*, int> constants_;  // tensor constants, in the graph's order
};

}  // namespace autoep

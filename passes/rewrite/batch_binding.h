// SPDX-License-Identifier: Apache-2.0
// What binds a traced model to a batch of 1: a tensor with one row that is read at the number of each sequence of the batch, as
// the mask code of transformers 5 does after a trace with batch 1.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <string>
#include <vector>

namespace autoep {

struct BatchBinding {
  torch::jit::Node* node = nullptr;   // aten::index
  torch::jit::Node* index = nullptr;  // the list of its indices, whose first counts the batch
  std::string text;                   // the node and its source line, for people
};

// Of all functions of the model, in order. Linear in their nodes.
std::vector<BatchBinding> FindBatchBindings(const torch::jit::Module& model);

}  // namespace autoep

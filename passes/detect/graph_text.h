// SPDX-License-Identifier: Apache-2.0
// GraphText: all of a graph and its module that evaluation (proof.h) reads: equal texts give equal answers.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <string>

namespace autoep {

// Nodes with their inputs' numbers and attributes; of the module's attributes that the graph reads, values, and of tensors of
// floats sizes and dtype (see Interpreter). Where something is too large to write down, the text is equal to no other.
std::string GraphText(const torch::jit::Graph& graph, const torch::jit::Module& self);

}  // namespace autoep

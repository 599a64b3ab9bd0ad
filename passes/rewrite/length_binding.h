// SPDX-License-Identifier: Apache-2.0
// What binds a traced model to some lengths of a sequence: a loop over the sequence that the trace unrolled, and a stored table
// that is cut to the length.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <string>
#include <vector>

namespace autoep {

struct LengthBinding {
  torch::jit::Node* node = nullptr;  // aten::select or aten::slice
  int64_t least = 0;                 // lengths that work
  int64_t most = 0;
  std::string text;                  // the node and its source line, for people
};

// Of all functions of the model, in order, each kind and length once a function. Found where dimension 1 of an argument is seen
// to set the dimension that is read; others may be overlooked.
std::vector<LengthBinding> FindLengthBindings(const torch::jit::Module& model);

// "a length of 12 only", "lengths from 1 to 16".
std::string DescribeLengths(const LengthBinding& binding);

}  // namespace autoep

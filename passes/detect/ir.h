// SPDX-License-Identifier: Apache-2.0
// Reading TorchScript IR: constants, no-op casts, and where a node came from.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <string>
#include <vector>

#include "passes/detect/moe_layer.h"

namespace autoep {

std::optional<int64_t> ConstInt(const torch::jit::Value* value);
std::optional<double> ConstNumber(const torch::jit::Value* value);  // of an int, a float, or a one-element tensor constant
std::optional<bool> ConstBool(const torch::jit::Value* value);
std::optional<std::string> ConstString(const torch::jit::Value* value);
// A constant list, or a prim::ListConstruct of constants.
std::optional<std::vector<int64_t>> ConstInts(const torch::jit::Value* value);
bool IsNone(const torch::jit::Value* value);
// The elements of a prim::ListConstruct.
std::vector<torch::jit::Value*> ListElements(const torch::jit::Value* value);

// What a module stores.
struct Stored {
  std::string name;  // fully qualified below `self`
  c10::IValue value;
};
// The attribute that `value` reads through prim::GetAttr from the graph's first input, which is `self`.
std::optional<Stored> FindStored(const torch::jit::Module& self, const torch::jit::Value* value);

inline bool IsKind(const torch::jit::Value* value, c10::Symbol kind) { return value->node()->kind() == kind; }

// The one-element tensor that an integer was read from (aten::Int, aten::item, ..), or `value` itself.
const torch::jit::Value* IndexTensor(const torch::jit::Value* value);

// One dimension of a tensor.
struct Size {
  const torch::jit::Value* of;
  int64_t dim;
};
// What aten::size(%of, dim) a number is, perhaps by way of a tensor.
std::optional<Size> FindSize(const torch::jit::Value* number);

// Looks through what leaves a value of `dtype` as it is: a cast to its own dtype, contiguous, detach, dropout that is off.
// Adds the nodes passed to `passed`, if given.
torch::jit::Value* StripNoOps(torch::jit::Value* value, at::ScalarType dtype, std::vector<torch::jit::Node*>* passed = nullptr);

// The node's printed form, one line; the line of the author's source that made it ("modeling_mixtral.py:128"), and its text:
// a trace keeps none, there it is the line of the archive's code. "" where the file does not say.
std::string NodeText(const torch::jit::Node* node);
std::string SourceLine(const torch::jit::Node* node);
std::string SourceText(const torch::jit::Node* node);

Miss Refuse(const std::string& path, std::string predicate, const torch::jit::Node* node = nullptr);
Refusal Describe(const Miss& miss);

}  // namespace autoep

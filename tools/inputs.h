// SPDX-License-Identifier: Apache-2.0
// A model's inputs, inferred from what its graph does with each argument, and seeded tensors for them.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

enum class InputKind {
  kTokenIds,   // int64 in [0, size): indexes an embedding of `size` rows
  kHidden,     // float, last dimension `size`: enters a linear, a router or a norm of that width
  kPositions,  // int64 positions: become the angles of a rotary embedding
  kMask,       // float [B, 1, S, S], added to attention scores
};

struct InputSpec {
  std::string name;  // of the argument
  InputKind kind = InputKind::kHidden;
  at::ScalarType dtype = at::kFloat;
  int64_t size = 0;
  bool flat_first = false;  // kHidden: nothing shows that the model takes [B, S, size]; try [B * S, size] first
  bool operator==(const InputSpec&) const = default;
};

// The tensors of one call, in the order of the arguments.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct InputShape {
  int64_t batch = 1;
  int64_t length = 1;
  bool flat = false;  // hidden states as [batch * length, size]

  std::string Name() const;  // "2x12"
  int64_t Tokens() const { return batch * length; }
  bool operator==(const InputShape&) const = default;
};

// One spec for every argument of `forward` that has no default. Reads graphs and shapes, no tensor values. kUsage with the
// argument's name where its kind cannot be inferred.
Result<std::vector<InputSpec>> InferInputs(const torch::jit::Module& module);

// The shapes to try: the usual ones in each layout that the specs leave open, then, for a trace that is specialised on
// batch 1, some of batch 1. A group is tried only if nothing of the groups before it works.
std::vector<std::vector<InputShape>> ShapesToTry(const std::vector<InputSpec>& specs);

// The same tensors for the same specs, shape and seed, on any machine.
NamedTensors MakeInputs(const std::vector<InputSpec>& specs, const InputShape& shape, uint64_t seed);

// Names of the arguments of `forward` without self: all of them, and those that have no default.
struct ArgumentNames {
  std::vector<std::string> all;
  std::vector<std::string> required;
};
ArgumentNames ArgumentsOf(const torch::jit::Module& module);

// Puts `given`, keyed by argument name, into the order of the arguments. kUsage for a name that is missing or unknown;
// `where` begins the message.
Result<NamedTensors> OrderInputs(const NamedTensors& given, const ArgumentNames& arguments, const std::string& where);

// `pattern` with "{rank}" replaced, so that each rank may have a file of its own.
std::string RankPath(const std::string& pattern, int64_t rank);

}  // namespace autoep

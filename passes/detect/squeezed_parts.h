// SPDX-License-Identifier: Apache-2.0
// SqueezedParts: a list that a script makes of another list's elements, each without its first dimension.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <vector>

namespace autoep {

struct SqueezedParts {
  torch::jit::Value* parts = nullptr;     // the other list
  std::vector<torch::jit::Node*> nodes;  // between the two
  torch::jit::Node* filled = nullptr;     // the one of them behind which the list is complete
};

// `list` as such a list that nothing else changes, or nullopt.
std::optional<SqueezedParts> MatchSqueezedParts(torch::jit::Value* list);

// Nothing but its length and its elements is read of a list.
bool IsOnlyRead(const torch::jit::Value* list, const torch::jit::Node* writer = nullptr);

}  // namespace autoep

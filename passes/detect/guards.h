// SPDX-License-Identifier: Apache-2.0
// Guards against ids past the last expert, as transformers 5.4 to 5.19 put around its experts for an expert parallelism of its own:
//   %ids = aten::clamp(%ids, 0, E-1), or in place
//   %mask = aten::unsqueeze(aten::ge(%ids, E), -1);  %rows = aten::masked_fill(%rows, %mask, 0), or in place
// A router of E experts chooses none of them, so they leave what they guard as it is.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <optional>

namespace autoep {

// Changes nothing as long as every one of the `ids`, which a router chose, is below `bound`.
struct Guard {
  int64_t bound = 0;
  const torch::jit::Value* ids = nullptr;
};

// None, where `node` is no such guard.
std::optional<Guard> MatchGuard(const torch::jit::Node* node);

bool IsClamp(const torch::jit::Node* node);

}  // namespace autoep

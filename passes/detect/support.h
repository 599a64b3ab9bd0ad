// SPDX-License-Identifier: Apache-2.0
// Support: how many entries of each row of a table may differ from one number. It makes a router of any value that gives each
// token its weights over all experts: at most k of them count.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <optional>

#include "passes/detect/flow.h"
#include "passes/detect/row_shape.h"

namespace autoep {

struct Support {
  int64_t most = 0;       // entries of a row, along the last dimension, that may differ from `rest`
  double rest = 0;        // 0, 1 (of tests), or -inf
  torch::jit::Value* ids = nullptr;  // [.., most]: where they are, if one value says it
};

// The support of `value`, [.., experts], as read before step `at`, or nullopt. `shapes` have sizes of the router's values.
std::optional<Support> FindSupport(torch::jit::Value* value, int at, const GraphFlow& flow, const ShapeTable& shapes);

}  // namespace autoep

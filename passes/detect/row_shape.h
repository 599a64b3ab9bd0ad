// SPDX-License-Identifier: Apache-2.0
// RowShape: how a value's dimensions stand to the tokens', read off its sizes on made-up tokens.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace autoep {

struct Shape {
  std::vector<int64_t> sizes;
  at::ScalarType dtype = at::kFloat;
};
using ShapeTable = std::unordered_map<const torch::jit::Value*, Shape>;

struct Tokens {
  int64_t batch = 1;
  int64_t length = 1;
  int64_t count() const { return batch * length; }
};

// Sizes that no small model has: no dimension of tokens is taken for another one.
inline constexpr Tokens kShapeTokens{5, 7};

// [T], [B, S], [T, columns] or [B, S, columns].
struct RowShape {
  bool batched = false;
  int64_t columns = 0;  // 0: none

  std::vector<int64_t> Sizes(const Tokens& tokens) const {
    std::vector<int64_t> sizes = batched ? std::vector<int64_t>{tokens.batch, tokens.length} : std::vector<int64_t>{tokens.count()};
    if (columns > 0) sizes.push_back(columns);
    return sizes;
  }
};

// Of sizes seen with so many tokens.
inline std::optional<RowShape> ParseRowShape(const std::vector<int64_t>& sizes, const Tokens& seen = kShapeTokens) {
  const size_t dims = sizes.size();
  const bool batched = dims >= 2 && sizes[0] == seen.batch && sizes[1] == seen.length;
  if (!batched && (dims < 1 || sizes[0] != seen.count())) return std::nullopt;
  const size_t tokens = batched ? 2 : 1;
  if (dims > tokens + 1 || (dims > tokens && sizes[tokens] < 1)) return std::nullopt;
  return RowShape{batched, dims > tokens ? sizes[tokens] : 0};
}

}  // namespace autoep

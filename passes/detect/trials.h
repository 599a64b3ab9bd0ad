// SPDX-License-Identifier: Apache-2.0
// The choices, weights and tokens on which a claim is tried (proof.h says why they are enough).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "passes/detect/proof.h"

namespace autoep {

// Small deterministic numbers.
class Numbers {
 public:
  explicit Numbers(unsigned seed) : engine_(seed) {}
  int64_t Next(int64_t low, int64_t high) { return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1)); }
  at::Tensor Tensor(at::IntArrayRef sizes, int64_t low, int64_t high);

 private:
  std::mt19937 engine_;
};

at::Tensor ToTensor(const std::vector<int64_t>& numbers);

struct Trial {
  Tokens tokens;
  std::vector<int64_t> ids;  // [T, k]
  at::Tensor weights;        // [T, k], float
  at::Tensor kept;           // [T, k], ones, and zeros where a choice is dropped
  at::Tensor x;              // [T, H], float
};

// [tokens, top_k]: row t chooses t, t + 1, ... modulo experts: every expert in every slot once there are as many tokens.
std::vector<int64_t> RotatedIds(int64_t tokens, int64_t top_k, int64_t experts);

// The largest whole number that the region compares something with, or cuts something at: a limit on tokens, as far as
// anybody can tell.
int64_t LargestLimit(const Claim& claim, const GraphFlow& flow);

// So many tokens, and the few that a baked loop needs, on the same experts, in one row of a batch or in as many; or on every
// expert. None, where a baked loop serves one number of tokens only.
enum class Crowd { kOneRow, kManyRows, kEveryExpert };
std::optional<Trial> MakeCrowd(const Claim& claim, int64_t tokens, Crowd crowd);

// `limit` is the region's. Throws c10::Error where no trial would reach it.
std::vector<Trial> MakeTrials(const Claim& claim, int64_t limit, Numbers& numbers);

}  // namespace autoep

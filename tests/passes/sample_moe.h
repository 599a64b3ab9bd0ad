// SPDX-License-Identifier: Apache-2.0
// A small MoE model in TorchScript source, for tests of passes: three linear layers an expert, dense evaluation.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <string>

namespace autoep::testing {

struct SampleMoe {
  int64_t experts = 4;
  int64_t top_k = 2;
  int64_t hidden = 8;
  int64_t intermediate = 6;
  at::ScalarType dtype = at::kFloat;
  uint64_t seed = 1;
  std::string scores = "torch.softmax(torch.linear(x, self.gate), 1)";
};

// forward(x [T, H]) -> [T, H]. Parameters gate [E, H], experts.<e>.{w1, w3 [I, H], w2 [H, I]}, seeded. With `helper`, the
// experts are called from a method `moe` of the block instead of forward.
torch::jit::Module MakeBlock(const SampleMoe& sample, bool helper = false);

// forward(x) = y + second(y) with y = x + first(x): two blocks, of one shared type or of a type each.
torch::jit::Module MakeStack(const SampleMoe& first, const SampleMoe& second, bool share_type);

// A folder below the test's own temporary folder; empty.
std::string TempFolder(const std::string& name);

// Writes `module` as an archive into `folder` and returns the path.
std::string Save(const torch::jit::Module& module, const std::string& folder, const std::string& name = "model.pt");

// Token rows [count, H], seeded.
at::Tensor Tokens(const SampleMoe& sample, int64_t count);

}  // namespace autoep::testing

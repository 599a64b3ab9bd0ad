// SPDX-License-Identifier: Apache-2.0
// An MoE layer for tests: run through the ops on one rank of N, and computed plainly with torch's own ops in fp64.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace autoep::testing {

struct LayerOptions {
  int64_t experts = 8, hidden = 6, inner = 5;
  at::ScalarType type = at::kDouble;
  std::string activation = "silu_gated";
  std::vector<double> activation_args = {};
  bool biases = false;
  bool shuffled = false;  // a placement that is not linear
  bool fused = false;     // run by the op moe
};

// All experts' weights; they require gradients.
struct MoeLayer {
  LayerOptions options;
  at::Tensor gate_up, down;
  std::optional<at::Tensor> gate_up_bias, down_bias;

  // placement [E, 1, 2] on `ranks` ranks.
  at::Tensor Placement(int64_t ranks) const;
  // The experts of `rank`, in slot order.
  std::vector<int64_t> ExpertsOf(int64_t rank, int64_t ranks) const;
};

// One rank's input; x, weights and scale require gradients.
struct Tokens {
  at::Tensor x, ids;
  std::optional<at::Tensor> weights, scale;
};

struct Gradients {
  std::vector<at::Tensor> inputs;   // of x, weights, scale, as far as given
  std::vector<at::Tensor> experts;  // of gate_up, down, and the biases, as far as there
};

MoeLayer RandomLayer(const LayerOptions& options);

// `seed` also decides the routes: the k experts of a token are distinct.
Tokens RandomTokens(const MoeLayer& layer, int64_t tokens, int64_t k, uint64_t seed, bool scaled = false);
// The same with given ids [T, k].
Tokens TokensFor(const MoeLayer& layer, const at::Tensor& ids, uint64_t seed);

// dispatch, experts, combine, or moe in their place, on this rank: [T, H]. Differentiable with respect to `shard`, this rank's
// experts of the layer.
at::Tensor RunOps(const MoeLayer& shard, const at::Tensor& placement, const Tokens& tokens, int64_t ranks, const std::string& group,
                  const std::string& label = "model.layers.0.mlp#plan");
MoeLayer Shard(const MoeLayer& layer, int64_t rank, int64_t ranks);

// The same in fp64 with plain ops, all experts on all tokens.
at::Tensor Reference(const MoeLayer& layer, const Tokens& tokens);

// Gradients of sum(out * pattern(out)).
Gradients Backward(const at::Tensor& out, const MoeLayer& layer, const Tokens& tokens);

// Runs `tokens` on this rank while the other ranks run theirs; throws c10::Error where the output or the gradients of the inputs
// differ from Reference's. Returns the gradients of the shard, which depend on all ranks' tokens.
Gradients CheckRank(const MoeLayer& layer, const Tokens& tokens, int64_t rank, int64_t ranks, const std::string& group);

// Throws unless |actual - expected| <= tolerance of the dtype * the largest |expected|, or both are empty.
void CheckClose(const at::Tensor& actual, const at::Tensor& expected, at::ScalarType type, const std::string& what);

}  // namespace autoep::testing

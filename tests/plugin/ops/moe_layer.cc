// SPDX-License-Identifier: Apache-2.0
// The layer through the ops, and plainly.
#include "tests/plugin/ops/moe_layer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "plugin/contract/activation.h"
#include "plugin/contract/schemas.h"

namespace autoep::testing {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor Random(at::IntArrayRef shape, double scale, at::ScalarType type, at::Generator generator) {
  return at::randn(shape, generator, at::kDouble).mul(scale).to(type).requires_grad_(true);
}

double Tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return 1e-12;
    case at::kFloat:
      return 1e-5;
    case at::kHalf:
      return 5e-3;
    default:
      return 3e-2;
  }
}

// A fixed shuffle of 0 .. n-1.
std::vector<int64_t> Shuffled(int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[(i * 7 + 3) % (i + 1)]);
  return order;
}

at::Tensor Activate(const LayerOptions& options, const at::Tensor& hidden) {
  const auto spec = *contract::ParseActivation(options.activation);
  const at::Tensor gate = spec.gated ? hidden.narrow(1, 0, options.inner) : hidden;
  const auto gated = [&](const at::Tensor& value) {
    return spec.gated ? value * hidden.narrow(1, options.inner, options.inner) : value;
  };
  switch (spec.kind) {
    case contract::Activation::kSilu:
      return gated(at::silu(gate));
    case contract::Activation::kGelu:
      return gated(at::gelu(gate));
    case contract::Activation::kGeluTanh:
      return gated(at::gelu(gate, "tanh"));
    case contract::Activation::kRelu:
      return gated(at::relu(gate));
    case contract::Activation::kReluSquared:
      return gated(at::relu(gate).square());
    case contract::Activation::kClampedSwiglu: {
      const double alpha = options.activation_args[0];
      const double limit = options.activation_args[1];
      const double shift = options.activation == "clamped_swiglu" ? 1 : 0;
      const at::Tensor g = at::clamp_max(gate, limit);
      return (at::clamp(hidden.narrow(1, options.inner, options.inner), -limit, limit) + shift) * g * at::sigmoid(g * alpha);
    }
  }
  return {};
}

at::Tensor Expert(const MoeLayer& layer, int64_t expert, const at::Tensor& x) {
  at::Tensor hidden = at::mm(x, layer.gate_up[expert].to(at::kDouble).t());
  if (layer.gate_up_bias) hidden = hidden + (*layer.gate_up_bias)[expert].to(at::kDouble);
  at::Tensor out = at::mm(Activate(layer.options, hidden), layer.down[expert].to(at::kDouble).t());
  return layer.down_bias ? out + (*layer.down_bias)[expert].to(at::kDouble) : out;
}

std::vector<at::Tensor> InputsOf(const Tokens& tokens) {
  std::vector<at::Tensor> inputs = {tokens.x};
  for (const OptionalTensor& optional : {tokens.weights, tokens.scale}) {
    if (optional) inputs.push_back(*optional);
  }
  return inputs;
}

std::vector<at::Tensor> WeightsOf(const MoeLayer& layer) {
  std::vector<at::Tensor> weights = {layer.gate_up, layer.down};
  for (const OptionalTensor& optional : {layer.gate_up_bias, layer.down_bias}) {
    if (optional) weights.push_back(*optional);
  }
  return weights;
}

}  // namespace

at::Tensor MoeLayer::Placement(int64_t ranks) const {
  const int64_t slots = options.experts / ranks;
  std::vector<int64_t> order(options.experts);
  std::iota(order.begin(), order.end(), 0);
  if (options.shuffled) order = Shuffled(options.experts);
  at::Tensor table = at::empty({options.experts, 1, 2}, at::kLong);
  for (int64_t place = 0; place < options.experts; ++place) {
    table[order[place]][0][0] = place / slots;
    table[order[place]][0][1] = place % slots;
  }
  return table;
}

std::vector<int64_t> MoeLayer::ExpertsOf(int64_t rank, int64_t ranks) const {
  const at::Tensor table = Placement(ranks);
  std::vector<int64_t> held(options.experts / ranks);
  for (int64_t expert = 0; expert < options.experts; ++expert) {
    if (table[expert][0][0].item<int64_t>() == rank) held[table[expert][0][1].item<int64_t>()] = expert;
  }
  return held;
}

MoeLayer RandomLayer(const LayerOptions& options) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  const int64_t width = contract::ParseActivation(options.activation)->gated ? 2 * options.inner : options.inner;
  MoeLayer layer{options,
                 Random({options.experts, width, options.hidden}, 0.5, options.type, generator),
                 Random({options.experts, options.hidden, options.inner}, 0.5, options.type, generator),
                 {},
                 {}};
  if (options.biases) {
    layer.gate_up_bias = Random({options.experts, width}, 0.5, options.type, generator);
    layer.down_bias = Random({options.experts, options.hidden}, 0.5, options.type, generator);
  }
  return layer;
}

Tokens TokensFor(const MoeLayer& layer, const at::Tensor& ids, uint64_t seed) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const at::ScalarType weights = layer.options.type == at::kDouble ? at::kDouble : at::kFloat;
  return {Random({ids.size(0), layer.options.hidden}, 1, layer.options.type, generator),
          ids,
          Random(ids.sizes(), 1, weights, generator),
          {}};
}

Tokens RandomTokens(const MoeLayer& layer, int64_t tokens, int64_t k, uint64_t seed, bool scaled) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed + 1000);
  const at::Tensor scores = at::rand({tokens, layer.options.experts}, generator, at::kDouble);
  Tokens made = TokensFor(layer, std::get<1>(at::topk(scores, k)).contiguous(), seed);
  if (scaled) made.scale = Random({tokens, k}, 1, made.weights->scalar_type(), generator);
  return made;
}

namespace {

at::Tensor RunMoe(const MoeLayer& shard, const at::Tensor& placement, const Tokens& tokens, int64_t ranks, const std::string& group,
                  const std::string& label) {
  using T = const at::Tensor&;
  using O = const OptionalTensor&;
  using S = std::string;
  static const auto moe = c10::Dispatcher::singleton()
                              .findSchemaOrThrow("autoep::moe", "ranks")
                              .typed<at::Tensor(T, T, O, O, T, T, T, O, O, S, at::ArrayRef<double>, std::optional<at::ScalarType>,
                                                int64_t, S, S, int64_t)>();
  return moe.call(tokens.x, tokens.ids, tokens.weights, tokens.scale, placement, shard.gate_up, shard.down, shard.gate_up_bias,
                  shard.down_bias, shard.options.activation, shard.options.activation_args, std::nullopt, ranks, group, label,
                  contract::kOpAbi);
}

}  // namespace

at::Tensor RunOps(const MoeLayer& shard, const at::Tensor& placement, const Tokens& tokens, int64_t ranks, const std::string& group,
                  const std::string& label) {
  if (shard.options.fused) return RunMoe(shard, placement, tokens, ranks, group, label);
  using T = const at::Tensor&;
  using O = const OptionalTensor&;
  using S = std::string;
  const auto find = [](const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); };
  static const auto dispatch =
      find("autoep::dispatch")
          .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(T, T, O, T, int64_t, S, S, int64_t)>();
  static const auto experts = find("autoep::experts").typed<at::Tensor(T, T, T, T, O, O, S, at::ArrayRef<double>, S, int64_t)>();
  static const auto combine = find("autoep::combine").typed<at::Tensor(T, O, T, T, T, T, int64_t, S, S, int64_t)>();
  const auto [rows, offsets, counts, order, received] =
      dispatch.call(tokens.x, tokens.ids, tokens.scale, placement, ranks, group, label, contract::kOpAbi);
  const at::Tensor out = experts.call(rows, offsets, shard.gate_up, shard.down, shard.gate_up_bias, shard.down_bias,
                                      shard.options.activation, shard.options.activation_args, label, contract::kOpAbi);
  return combine.call(out, tokens.weights, order, counts, received, placement, ranks, group, label, contract::kOpAbi);
}

MoeLayer Shard(const MoeLayer& layer, int64_t rank, int64_t ranks) {
  const at::Tensor held = at::tensor(layer.ExpertsOf(rank, ranks));
  const auto slice = [&](const at::Tensor& weight) { return weight.detach().index_select(0, held).requires_grad_(true); };
  MoeLayer shard{layer.options, slice(layer.gate_up), slice(layer.down), {}, {}};
  if (layer.gate_up_bias) shard.gate_up_bias = slice(*layer.gate_up_bias);
  if (layer.down_bias) shard.down_bias = slice(*layer.down_bias);
  return shard;
}

at::Tensor Reference(const MoeLayer& layer, const Tokens& tokens) {
  at::Tensor out = at::zeros({tokens.x.size(0), layer.options.hidden}, at::kDouble);
  const at::Tensor x = tokens.x.to(at::kDouble);
  for (int64_t j = 0; j < tokens.ids.size(1); ++j) {
    const at::Tensor in = tokens.scale ? x * tokens.scale->narrow(1, j, 1).to(at::kDouble) : x;
    for (int64_t expert = 0; expert < layer.options.experts; ++expert) {
      at::Tensor factor = tokens.ids.narrow(1, j, 1).eq(expert).to(at::kDouble);
      if (tokens.weights) factor = factor * tokens.weights->narrow(1, j, 1).to(at::kDouble);
      out = out + Expert(layer, expert, in) * factor;
    }
  }
  return out;
}

Gradients Backward(const at::Tensor& out, const MoeLayer& layer, const Tokens& tokens) {
  std::vector<at::Tensor> leaves = InputsOf(tokens);
  const size_t inputs = leaves.size();
  for (const at::Tensor& weight : WeightsOf(layer)) leaves.push_back(weight);
  const at::Tensor pattern =
      at::arange(out.numel(), out.options().dtype(at::kDouble)).view(out.sizes()).mul(0.7).cos().to(out.scalar_type());
  const std::vector<at::Tensor> grads = torch::autograd::grad({out.mul(pattern).sum()}, leaves, {}, /*retain_graph=*/true,
                                                              /*create_graph=*/false, /*allow_unused=*/true);
  return {{grads.begin(), grads.begin() + inputs}, {grads.begin() + inputs, grads.end()}};
}

void CheckClose(const at::Tensor& actual, const at::Tensor& expected, at::ScalarType type, const std::string& what) {
  TORCH_CHECK(actual.defined() && expected.defined(), what, ": a tensor is missing");
  TORCH_CHECK(actual.sizes() == expected.sizes(), what, ": ", actual.sizes(), " instead of ", expected.sizes());
  if (expected.numel() == 0) return;
  const double largest = std::max(expected.abs().max().item<double>(), 1e-3);
  const double error = (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  TORCH_CHECK(error <= Tolerance(type) * largest, what, ": ", error, " away, of ", largest);
}

Gradients CheckRank(const MoeLayer& layer, const Tokens& tokens, int64_t rank, int64_t ranks, const std::string& group) {
  const MoeLayer shard = Shard(layer, rank, ranks);
  const at::Tensor out = RunOps(shard, layer.Placement(ranks), tokens, ranks, group);
  const at::Tensor expected = Reference(layer, tokens);
  CheckClose(out, expected, layer.options.type, "output");
  {
    const c10::NoGradGuard no_grad;  // moe then may take another way
    const at::Tensor plain = RunOps(shard, layer.Placement(ranks), tokens, ranks, group);
    CheckClose(plain, expected, layer.options.type, "output without gradients");
  }
  const Gradients actual_grads = Backward(out, shard, tokens);
  const Gradients expected_grads = Backward(expected, layer, tokens);
  for (size_t i = 0; i < actual_grads.inputs.size(); ++i) {
    CheckClose(actual_grads.inputs[i], expected_grads.inputs[i], layer.options.type, c10::str("gradient of input ", i));
  }
  return actual_grads;
}

}  // namespace autoep::testing

// SPDX-License-Identifier: Apache-2.0
// The activations of contract/activation.h, in the ways in which graphs write them.
#include "passes/detect/activation.h"

#include <utility>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

using Nodes = std::vector<Node*>;

struct Unary {
  std::string name;
  Value* input;
  Nodes nodes;
};

bool IsMul(const Node* node) { return node->kind() == aten::mul || node->kind() == aten::mul_; }

// silu(x), or x * sigmoid(scale * x): %s = sigmoid(mul(%x, scale)); %y = mul(%x, %s), factors in any order. `scale` 1 may be left
// out.
struct Swish {
  Value* input;
  double scale;
  Nodes nodes;
};

std::optional<Swish> MatchSwish(Value* value) {
  Node* product = value->node();
  if (product->kind() == aten::silu || product->kind() == aten::silu_) return Swish{product->input(), 1.0, {product}};
  if (!IsMul(product)) return std::nullopt;
  for (int side = 0; side < 2; ++side) {
    Value* x = product->input(side);
    Node* sigmoid = product->input(1 - side)->node();
    if (sigmoid->kind() != aten::sigmoid) continue;
    Value* inner = sigmoid->input();
    if (inner == x) return Swish{x, 1.0, {product, sigmoid}};
    Node* scaled = inner->node();
    if (!IsMul(scaled) || scaled->input(0) != x) continue;
    if (const auto scale = ConstNumber(scaled->input(1))) return Swish{x, *scale, {product, sigmoid, scaled}};
  }
  return std::nullopt;
}

// swish, gelu(x, 'none' or 'tanh'), relu(x).
std::optional<Unary> MatchUnary(Value* value) {
  Node* node = value->node();
  if (node->kind() == aten::relu || node->kind() == aten::relu_) return Unary{"relu", node->input(), {node}};
  if (node->kind() == aten::gelu) {
    const auto approximate = ConstString(node->input(1));
    if (approximate == "none") return Unary{"gelu", node->input(0), {node}};
    if (approximate == "tanh") return Unary{"gelu_tanh", node->input(0), {node}};
    return std::nullopt;
  }
  const auto swish = MatchSwish(value);
  if (swish && swish->scale == 1.0) return Unary{"silu", swish->input, swish->nodes};
  return std::nullopt;
}

// relu(x)^2: square, pow 2, or the product with itself.
std::optional<Unary> MatchReluSquared(Value* value) {
  Node* node = value->node();
  Value* root = nullptr;
  if (node->kind() == aten::square) root = node->input();
  if (node->kind() == aten::pow && ConstNumber(node->input(1)) == 2.0) root = node->input(0);
  if (IsMul(node) && node->input(0) == node->input(1)) root = node->input(0);
  if (!root || (root->node()->kind() != aten::relu && root->node()->kind() != aten::relu_)) return std::nullopt;
  return Unary{"relu_squared", root->node()->input(), {node, root->node()}};
}

// clamp(x, low, high), where `low` may be none.
bool IsClamp(const Node* node, std::optional<double> low, double high) {
  if (node->kind() == aten::clamp || node->kind() == aten::clamp_) {
    const bool low_fits = low ? ConstNumber(node->input(1)) == *low : IsNone(node->input(1));
    return low_fits && ConstNumber(node->input(2)) == high;
  }
  if (node->kind() == aten::clamp_max) return !low && ConstNumber(node->input(1)) == high;
  return false;
}

// (clamp(up, -limit, limit) + 1) * swish_alpha(clamp(gate, max=limit)), factors in any order, with or without the 1.
std::optional<ActivationMatch> MatchClampedSwiglu(Value* value) {
  Node* product = value->node();
  if (!IsMul(product)) return std::nullopt;
  for (int side = 0; side < 2; ++side) {
    const auto swish = MatchSwish(product->input(1 - side));
    if (!swish) continue;
    Node* gate = swish->input->node();
    Node* up = product->input(side)->node();
    Nodes nodes = {product, gate};
    const bool shifted = up->kind() == aten::add || up->kind() == aten::add_;
    if (shifted) {
      if (ConstNumber(up->input(1)) != 1.0 || ConstNumber(up->input(2)) != 1.0) continue;
      nodes.push_back(up);
      up = up->input(0)->node();
    }
    nodes.push_back(up);
    std::optional<double> limit;
    if (gate->kind() == aten::clamp || gate->kind() == aten::clamp_) limit = ConstNumber(gate->input(2));
    if (gate->kind() == aten::clamp_max) limit = ConstNumber(gate->input(1));
    if (!limit || !IsClamp(gate, std::nullopt, *limit) || !IsClamp(up, -*limit, *limit)) continue;
    nodes.insert(nodes.end(), swish->nodes.begin(), swish->nodes.end());
    return ActivationMatch{
        shifted ? "clamped_swiglu" : "limited_swiglu", {swish->scale, *limit}, gate->input(0), up->input(0), nodes};
  }
  return std::nullopt;
}

}  // namespace

std::vector<ActivationMatch> MatchActivations(Value* value, at::ScalarType dtype) {
  std::vector<ActivationMatch> matches;
  if (auto clamped = MatchClampedSwiglu(value)) matches.push_back(*std::move(clamped));
  Node* product = value->node();
  for (int side = 0; IsMul(product) && side < 2; ++side) {
    Nodes nodes = {product};
    const auto act = MatchUnary(StripNoOps(product->input(side), dtype, &nodes));
    if (!act) continue;
    nodes.insert(nodes.end(), act->nodes.begin(), act->nodes.end());
    matches.push_back({act->name + "_gated", {}, act->input, product->input(1 - side), nodes});
  }
  auto alone = MatchReluSquared(value);
  if (!alone) alone = MatchUnary(value);
  if (alone) matches.push_back({alone->name, {}, nullptr, alone->input, alone->nodes});
  return matches;
}

}  // namespace autoep

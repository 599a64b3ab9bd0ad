// SPDX-License-Identifier: Apache-2.0
// From a value back to the tensor that the model stores.
#include "passes/detect/weight.h"

#include <fmt/format.h>

#include <algorithm>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

void NumberConstants(Block* block, std::unordered_map<const Value*, int>& constants) {
  for (Node* node : block->nodes()) {
    if (node->kind() == prim::Constant && node->output()->type()->kind() == c10::TypeKind::TensorType) {
      constants.emplace(node->output(), static_cast<int>(constants.size()));
    }
    for (Block* inner : node->blocks()) NumberConstants(inner, constants);
  }
}

// t(W), or transpose(W, a, b) of the last two dimensions in either order.
bool SwapsLastTwo(const Node* node, int64_t dims) {
  if (node->kind() == aten::t) return dims == 2;
  if (node->kind() != aten::transpose) return false;
  auto a = ConstInt(node->input(1)), b = ConstInt(node->input(2));
  if (!a || !b) return false;
  if (*a < 0) *a += dims;
  if (*b < 0) *b += dims;
  return std::min(*a, *b) == dims - 2 && std::max(*a, *b) == dims - 1;
}

}  // namespace

WeightFinder::WeightFinder(const torch::jit::Module& self, torch::jit::Graph& graph) : self_(self) {
  if (!graph.inputs().empty()) self_value_ = graph.inputs()[0];
  NumberConstants(graph.block(), constants_);
}

std::optional<Weight> WeightFinder::FindAttribute(Value* value) const {
  std::vector<Node*> chain;
  Value* at = value;
  while (at->node()->kind() == prim::GetAttr) {
    chain.push_back(at->node());
    at = at->node()->input();
  }
  if (at != self_value_ || chain.empty()) return std::nullopt;
  std::reverse(chain.begin(), chain.end());
  c10::IValue current = self_._ivalue();
  Weight weight;
  for (Node* node : chain) {
    if (!current.isObject()) return std::nullopt;
    const std::string& name = node->s(c10::attr::name);
    current = current.toObject()->getAttr(name);
    weight.name += (weight.name.empty() ? "" : ".") + name;
  }
  if (!current.isTensor() || !current.toTensor().defined()) return std::nullopt;
  weight.tensor = current.toTensor();
  weight.nodes = {chain.back()};
  return weight;
}

std::optional<Weight> WeightFinder::Find(Value* value) const {
  Node* node = value->node();
  if (node->kind() == prim::GetAttr) return FindAttribute(value);
  if (node->kind() == prim::Constant) {
    const auto number = constants_.find(value);
    if (number == constants_.end()) return std::nullopt;
    return Weight{fmt::format("constant:{}", number->second), torch::jit::toIValue(value)->toTensor(), false, nullptr, {node}};
  }
  if (node->kind() == aten::detach || node->kind() == aten::contiguous) {
    auto weight = Find(node->input(0));
    if (weight) weight->nodes.push_back(node);
    return weight;
  }
  if (node->kind() != aten::t && node->kind() != aten::transpose && node->kind() != aten::select) return std::nullopt;
  auto weight = Find(node->input(0));
  if (!weight) return std::nullopt;
  if (node->kind() == aten::select) {
    // W[i] of a stacked W, before anything else is done to it.
    if (ConstInt(node->input(1)) != 0 || weight->selected || weight->tensor.dim() < 2) return std::nullopt;
    weight->selected = node->input(2);
  } else {
    if (!SwapsLastTwo(node, weight->dim())) return std::nullopt;
    weight->swapped = !weight->swapped;
  }
  weight->nodes.push_back(node);
  return weight;
}

}  // namespace autoep

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

const auto kNumpyT = c10::Symbol::fromQualString("aten::numpy_T");

void NumberConstants(Block* block, std::unordered_map<const Value*, int>& constants) {
  for (Node* node : block->nodes()) {
    if (node->kind() == prim::Constant && node->output()->type()->kind() == c10::TypeKind::TensorType) {
      constants.emplace(node->output(), static_cast<int>(constants.size()));
    }
    for (Block* inner : node->blocks()) NumberConstants(inner, constants);
  }
}

// t(W), W.T, or transpose(W, a, b) of the last two dimensions in either order.
bool SwapsLastTwo(const Node* node, int64_t dims) {
  if (node->kind() == aten::t || node->kind() == kNumpyT) return dims == 2;
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
    return Weight{
        fmt::format("constant:{}", number->second), torch::jit::toIValue(value)->toTensor(), false, nullptr, std::nullopt, {node}};
  }
  if (node->kind() == aten::detach || node->kind() == aten::contiguous) {
    auto weight = Find(node->input(0));
    if (weight) weight->nodes.push_back(node);
    return weight;
  }
  if (node->kind() == aten::view || node->kind() == aten::reshape) return FindSplit(node);
  if (node->kind() == prim::ListUnpack || node->kind() == aten::squeeze) return FindUnpacked(value);
  if (node->kind() == aten::select) {
    // W[i] of a stacked W, before anything else is done to it.
    if (ConstInt(node->input(1)) != 0) return std::nullopt;
    const auto at = ConstInt(node->input(2));
    auto weight = FindEntry(node->input(0), at ? nullptr : node->input(2), at.value_or(0));
    if (weight) weight->nodes.push_back(node);
    return weight;
  }
  if (node->kind() != aten::t && node->kind() != kNumpyT && node->kind() != aten::transpose) return std::nullopt;
  auto weight = Find(node->input(0));
  if (!weight || !SwapsLastTwo(node, weight->dim())) return std::nullopt;
  weight->swapped = !weight->swapped;
  weight->nodes.push_back(node);
  return weight;
}

// %stack = aten::view(%W, [E, rows, C])     W [E * rows, C]; one of E and rows may be -1
std::optional<Weight> WeightFinder::FindSplit(Node* view) const {
  const auto sizes = ConstInts(view->input(1));
  auto weight = Find(view->input(0));
  if (!sizes || sizes->size() != 3 || !weight || weight->tensor.dim() != 2 || weight->swapped || weight->dim() != 2)
    return std::nullopt;
  if ((*sizes)[2] != weight->tensor.size(1) || !weight->tensor.is_contiguous()) return std::nullopt;
  const int64_t rows = weight->tensor.size(0);
  const int64_t known = (*sizes)[1] > 0 ? (*sizes)[1] : (*sizes)[0];
  if (known <= 0 || rows % known != 0) return std::nullopt;
  weight->tensor = weight->tensor.detach().view(*sizes).set_requires_grad(weight->tensor.requires_grad());
  weight->nodes.push_back(view);
  return weight;
}

std::optional<Weight> WeightFinder::FindEntry(Value* stack, Value* index, int64_t at) const {
  auto weight = Find(stack);
  if (!weight || weight->selected || weight->at || weight->swapped || weight->tensor.dim() < 2) return std::nullopt;
  if (index) {
    weight->selected = index;
  } else {
    weight->at = at < 0 ? at + weight->tensor.size(0) : at;
    if (*weight->at < 0 || *weight->at >= weight->tensor.size(0)) return std::nullopt;
  }
  return weight;
}

// %entries = aten::unbind(%W, 0); .., %w, .. = prim::ListUnpack(%entries)
// %entries = aten::chunk(%W, E, 0) or aten::split(%W, 1, 0); .., %e, .. = prim::ListUnpack(%entries); %w = aten::squeeze(%e, 0)
std::optional<Weight> WeightFinder::FindUnpacked(Value* value) const {
  std::vector<Node*> nodes;
  const bool squeezed = value->node()->kind() == aten::squeeze;
  if (squeezed) {
    Node* squeeze = value->node();
    if (squeeze->inputs().size() != 2 || ConstInt(squeeze->input(1)) != 0) return std::nullopt;
    nodes.push_back(squeeze);
    value = squeeze->input(0);
  }
  Node* unpack = value->node();
  if (unpack->kind() != prim::ListUnpack) return std::nullopt;
  Node* entries = unpack->input()->node();
  const auto kind = entries->kind();
  if (kind != aten::unbind && kind != aten::chunk && kind != aten::split) return std::nullopt;
  if (squeezed == (kind == aten::unbind) || ConstInt(entries->inputs().back()) != 0) return std::nullopt;
  auto weight = FindEntry(entries->input(0), nullptr, static_cast<int64_t>(value->offset()));
  if (!weight || static_cast<int64_t>(unpack->outputs().size()) != weight->tensor.size(0)) return std::nullopt;
  nodes.insert(nodes.end(), {unpack, entries});
  weight->nodes.insert(weight->nodes.end(), nodes.begin(), nodes.end());
  return weight;
}

}  // namespace autoep

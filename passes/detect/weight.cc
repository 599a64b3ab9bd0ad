// SPDX-License-Identifier: Apache-2.0
// From a value back to the tensor that the model stores.
#include "passes/detect/weight.h"

#include <fmt/format.h>

#include <algorithm>

#include "passes/detect/ir.h"
#include "passes/detect/squeezed_parts.h"

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
  NumberConstants(graph.block(), constants_);
}

std::optional<Weight> WeightFinder::FindAttribute(Value* value) const {
  const auto attribute = FindStored(self_, value);
  if (!attribute || !attribute->value.isTensor() || !attribute->value.toTensor().defined()) return std::nullopt;
  Weight weight;
  weight.name = attribute->name;
  weight.tensor = attribute->value.toTensor();
  weight.nodes = {value->node()};
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
  if (node->kind() == aten::__getitem__) return FindItem(node);
  if (node->kind() == aten::index) return FindIndexed(node);
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
  const auto sizes = FindInts(view->input(1));
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

// %w = aten::index(%W, [%i]), %i of no dimension: the proof sees that
std::optional<Weight> WeightFinder::FindIndexed(Node* index) const {
  const std::vector<Value*> indices = ListElements(index->input(1));
  if (indices.size() != 1 || IsNone(indices[0])) return std::nullopt;
  auto weight = FindEntry(index->input(0), indices[0], 0);
  if (weight) weight->nodes.push_back(index);
  return weight;
}

// %parts = aten::chunk(%W, E, 0) or aten::split(%W, 1, 0); %w = aten::__getitem__(%squeezed, %i), or of aten::unbind(%W, 0)
std::optional<Weight> WeightFinder::FindItem(Node* item) const {
  Value* list = item->input(0);
  const auto squeezed = MatchSqueezedParts(list);
  if (squeezed && !squeezed->filled->isBefore(item)) return std::nullopt;
  Node* entries = squeezed ? squeezed->parts->node() : list->node();
  const auto kind = entries->kind();
  const bool apart = squeezed ? kind == aten::chunk || kind == aten::split : kind == aten::unbind && IsOnlyRead(list);
  if (!apart || FindInt(entries->inputs().back()) != 0) return std::nullopt;
  const auto at = FindInt(item->input(1));
  auto weight = FindEntry(entries->input(0), at ? nullptr : item->input(1), at.value_or(0));
  if (!weight) return std::nullopt;
  if (squeezed && FindInt(entries->input(1)) != (kind == aten::chunk ? weight->tensor.size(0) : 1)) return std::nullopt;
  weight->nodes.insert(weight->nodes.end(), {item, entries});
  if (squeezed) weight->nodes.insert(weight->nodes.end(), squeezed->nodes.begin(), squeezed->nodes.end());
  return weight;
}

std::optional<int64_t> WeightFinder::FindInt(const Value* value) const {
  if (const auto constant = ConstInt(value)) return constant;
  const auto stored = FindStored(self_, value);
  return stored && stored->value.isInt() ? std::optional<int64_t>(stored->value.toInt()) : std::nullopt;
}

std::optional<std::vector<int64_t>> WeightFinder::FindInts(const Value* value) const {
  const std::vector<Value*> elements = ListElements(value);
  if (elements.empty()) return ConstInts(value);
  std::vector<int64_t> ints;
  for (const Value* element : elements) {
    const auto number = FindInt(element);
    if (!number) return std::nullopt;
    ints.push_back(*number);
  }
  return ints;
}

}  // namespace autoep

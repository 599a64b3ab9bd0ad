// SPDX-License-Identifier: Apache-2.0
// Rows of a stacked tensor:
//   %w = aten::index(%W, [%ids]), or aten::index_select(%W, 0, %ids);  then perhaps aten::transpose(%w, 1, 2)
#include "passes/detect/gather.h"

#include <utility>
#include <vector>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

std::optional<Gathered> MatchGather(Value* value, const WeightFinder& weights) {
  Node* node = value->node();
  if (node->kind() == aten::transpose && ConstInt(node->input(1)) && ConstInt(node->input(2))) {
    const int64_t a = *ConstInt(node->input(1)), b = *ConstInt(node->input(2));
    if ((a + 3) % 3 + (b + 3) % 3 != 3 || (a - b) % 3 == 0) return std::nullopt;
    auto gathered = MatchGather(node->input(0), weights);
    if (!gathered || gathered->weight.tensor.dim() != 3) return std::nullopt;
    gathered->weight.swapped = !gathered->weight.swapped;
    gathered->weight.nodes.push_back(node);
    return gathered;
  }
  Value* ids = nullptr;
  if (node->kind() == aten::index) {
    const std::vector<Value*> indices = ListElements(node->input(1));
    if (indices.size() == 1) ids = indices[0];
  } else if (node->kind() == aten::index_select && ConstInt(node->input(1)) == 0) {
    ids = node->input(2);
  }
  if (!ids || IsNone(ids)) return std::nullopt;
  auto weight = weights.Find(node->input(0));
  if (!weight || weight->selected || weight->at) return std::nullopt;
  weight->nodes.push_back(node);
  return Gathered{*std::move(weight), ids};
}

}  // namespace autoep

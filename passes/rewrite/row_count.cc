// SPDX-License-Identifier: Apache-2.0
#include "passes/rewrite/row_count.h"

#include <optional>
#include <vector>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

// The sizes whose product `value` is; false where it is another one's.
bool CollectFactors(const Value* value, std::vector<Size>* factors) {
  const Node* node = IndexTensor(value)->node();
  if (node->kind() == aten::mul && node->inputs().size() == 2) {
    return CollectFactors(node->input(0), factors) && CollectFactors(node->input(1), factors);
  }
  const auto size = FindSize(value);
  if (size) factors->push_back(*size);
  return size.has_value();
}

// What a matrix was made of, row by row; null: of nothing of the kind.
const Value* RowsBefore(const Value* matrix) {
  const Node* node = matrix->node();
  const c10::Symbol kind = node->kind();
  const bool keeps = kind == aten::softmax || kind == aten::sigmoid || kind == aten::to || kind == aten::linear || kind == aten::mm;
  return keeps ? node->input(0) : nullptr;
}

// %flat = aten::view(%x, [-1, aten::size(%x, d)]), and the factors are %x's sizes before d.
bool AreLeadingSizes(const std::vector<Size>& factors, const Value* flat) {
  const Node* view = flat->node();
  if (view->kind() != aten::view && view->kind() != aten::reshape) return false;
  const std::vector<Value*> sizes = ListElements(view->input(1));
  const auto last = sizes.size() == 2 && ConstInt(sizes[0]) == -1 ? FindSize(sizes[1]) : std::nullopt;
  if (!last || last->of != view->input(0) || last->dim != static_cast<int64_t>(factors.size())) return false;
  std::vector<bool> seen(factors.size());
  for (const Size& factor : factors) {
    if (factor.of != last->of || factor.dim < 0 || factor.dim >= last->dim || seen[factor.dim]) return false;
    seen[factor.dim] = true;
  }
  return true;
}

}  // namespace

bool CountsRows(const Value* count, const Value* matrix) {
  std::vector<Size> factors;
  if (!CollectFactors(count, &factors)) return false;
  for (const Value* rows = matrix; rows != nullptr; rows = RowsBefore(rows)) {
    if (factors.size() == 1 && factors[0].of == rows && factors[0].dim == 0) return true;
    if (AreLeadingSizes(factors, rows)) return true;
  }
  return false;
}

}  // namespace autoep

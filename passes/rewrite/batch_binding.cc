// SPDX-License-Identifier: Apache-2.0
// The pattern, upwards from the read; %B = aten::size(.., 0):
//   %rows = aten::unsqueeze(aten::arange(%L, ..), 0), then what keeps its one row: slice, sub, diff, ne, cumsum, ..
//   %b = aten::unsqueeze(aten::arange(%B, ..), 1), ..
//   %read = aten::index(%rows, [%b, ..])      out of range for every row but the first
#include "passes/rewrite/batch_binding.h"

#include <algorithm>
#include <optional>

#include "passes/detect/ir.h"
#include "passes/model/modules.h"

namespace autoep {
namespace {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

constexpr int kMostSteps = 32;  // the mask code has less than ten

bool IsRange(const Node* node) { return node->kind() == aten::arange; }

bool IsNumber(const Value* value) { return value->type()->kind() != c10::TypeKind::TensorType || ConstNumber(value).has_value(); }

// A slice that takes all of its dimension, or one of another dimension than the first.
bool SliceKeepsRows(const Node* slice) {
  const auto dim = ConstInt(slice->input(1));
  if (!dim || *dim < 0) return false;
  if (*dim > 0) return true;
  const bool from_start = IsNone(slice->input(2)) || ConstInt(slice->input(2)) == 0;
  const auto end = ConstInt(slice->input(3));
  return from_start && ConstInt(slice->input(4)) == 1 && (IsNone(slice->input(3)) || (end && *end == INT64_MAX));
}

bool IsElementwise(const Node* node) {
  switch (node->kind()) {
    case aten::add:
    case aten::sub:
    case aten::mul:
    case aten::ne:
    case aten::eq:
      return true;
    default:
      return false;
  }
}

// A vector whose length is not known: a range, shifted or scaled by numbers.
bool IsVector(const Value* value, int steps = kMostSteps) {
  const Node* node = value->node();
  if (IsRange(node)) return true;
  if (steps == 0 || node->inputs().empty()) return false;
  if (node->kind() == aten::to) return IsVector(node->input(0), steps - 1);
  return IsElementwise(node) && IsNumber(node->input(1)) && IsVector(node->input(0), steps - 1);
}

// A matrix with one row, whatever the model's inputs are.
bool HasOneRow(const Value* value, int steps = kMostSteps) {
  const Node* node = value->node();
  if (steps == 0 || node->inputs().empty()) return false;
  const auto first = [&] { return HasOneRow(node->input(0), steps - 1); };
  static const auto kDiff = c10::Symbol::fromQualString("aten::diff");
  if (node->kind() == aten::unsqueeze) return ConstInt(node->input(1)) == 0 && IsVector(node->input(0));
  if (node->kind() == aten::slice) return SliceKeepsRows(node) && first();
  if (node->kind() == aten::cumsum) return ConstInt(node->input(1)) == -1 && first();
  if (node->kind() == aten::to || node->kind() == aten::contiguous) return first();
  if (node->kind() == kDiff) {
    const auto one_row_or_none = [&](const Value* given) { return IsNone(given) || HasOneRow(given, steps - 1); };
    return ConstInt(node->input(2)) == -1 && first() && one_row_or_none(node->input(3)) && one_row_or_none(node->input(4));
  }
  if (IsElementwise(node)) return first() && (IsNumber(node->input(1)) || HasOneRow(node->input(1), steps - 1));
  return false;
}

// The numbers 0 to B - 1 in some shape.
bool CountsBatch(const Value* value) {
  for (int steps = kMostSteps; steps > 0; --steps) {
    const Node* node = value->node();
    if (IsRange(node)) {
      const auto end = node->inputs().size() == 5 ? FindSize(node->input(0)) : std::nullopt;
      return end && end->dim == 0;
    }
    const bool moves = node->kind() == aten::unsqueeze || node->kind() == aten::view || node->kind() == aten::reshape ||
                       (node->kind() == aten::slice && SliceKeepsRows(node));
    if (!moves) return false;
    value = node->input(0);
  }
  return false;
}

}  // namespace

std::vector<BatchBinding> FindBatchBindings(const torch::jit::Module& model) {
  std::vector<BatchBinding> found;
  AllFunctions(ObjectIndex(model), [&](torch::jit::GraphFunction&, Node* node, torch::jit::GraphFunction*) {
    if (node->kind() != aten::index) return;
    Node* list = node->input(1)->node();
    if (list->kind() != prim::ListConstruct || list->inputs().size() != 2) return;
    if (!CountsBatch(list->input(0)) || !HasOneRow(node->input(0))) return;
    const std::string source = SourceLine(node);
    found.push_back({node, list, source.empty() ? NodeText(node) : NodeText(node) + ", at " + source});
  });
  return found;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// From a guard back to the top-k whose indices it guards.
#include "passes/detect/guards.h"

#include <initializer_list>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

bool IsOneOf(const Node* node, std::initializer_list<c10::Symbol> kinds) {
  for (const c10::Symbol kind : kinds) {
    if (node->kind() == kind) return true;
  }
  return false;
}

// Indices of a top-k, perhaps sorted and laid out anew: integers, and none below 0.
bool AreChosenIds(const Value* value) {
  while (true) {
    const Node* node = value->node();
    if (node->kind() == aten::topk) return value->offset() == 1;
    const bool sorted = node->kind() == aten::sort && value->offset() == 0;
    const bool moved = IsOneOf(
        node, {aten::reshape, aten::view, aten::flatten, aten::contiguous, aten::clone, aten::detach, aten::to, aten::index});
    if (!sorted && !moved && !IsClamp(node)) return false;
    value = node->input(0);
  }
}

std::optional<int64_t> ClampBound(const Node* node) {
  const bool only_max = IsOneOf(node, {aten::clamp_max, aten::clamp_max_});
  const auto most = ConstInt(node->input(only_max ? 1 : 2));
  const auto least = only_max || IsNone(node->input(1)) ? std::optional<int64_t>(0) : ConstInt(node->input(1));
  if (!most || !least || *least > 0 || !AreChosenIds(node->input(0))) return std::nullopt;
  return *most + 1;
}

// True nowhere, as long as the ids are below the number compared with.
std::optional<int64_t> MaskBound(const Value* mask) {
  while (IsOneOf(mask->node(), {aten::unsqueeze, aten::view, aten::reshape})) mask = mask->node()->input(0);
  const Node* node = mask->node();
  if (node->kind() != aten::ge || !AreChosenIds(node->input(0))) return std::nullopt;
  return ConstInt(node->input(1));
}

}  // namespace

bool IsClamp(const Node* node) { return IsOneOf(node, {aten::clamp, aten::clamp_, aten::clamp_max, aten::clamp_max_}); }

std::optional<int64_t> GuardBound(const Node* node) {
  if (IsClamp(node)) return ClampBound(node);
  if (IsOneOf(node, {aten::masked_fill, aten::masked_fill_})) return MaskBound(node->input(1));
  return std::nullopt;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// From a guard back to the choice whose indices it guards.
#include "passes/detect/guards.h"

#include <initializer_list>

#include "passes/detect/ir.h"
#include "passes/detect/router.h"

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

// Back to the indices that a choice of experts made, from where they are perhaps sorted and laid out anew: integers, and none
// below 0. Null if there is none.
const Value* ChosenIds(const Value* value) {
  while (!IsChoice(value)) {
    const Node* node = value->node();
    const bool sorted = node->kind() == aten::sort && value->offset() == 0;
    const bool moved = IsOneOf(
        node, {aten::reshape, aten::view, aten::flatten, aten::contiguous, aten::clone, aten::detach, aten::to, aten::index});
    if (!sorted && !moved && !IsClamp(node)) return nullptr;
    value = node->input(0);
  }
  return value;
}

std::optional<Guard> MatchClamp(const Node* node) {
  const bool only_max = IsOneOf(node, {aten::clamp_max, aten::clamp_max_});
  const auto most = ConstInt(node->input(only_max ? 1 : 2));
  const auto least = only_max || IsNone(node->input(1)) ? std::optional<int64_t>(0) : ConstInt(node->input(1));
  const Value* ids = ChosenIds(node->input(0));
  if (!most || !least || *least > 0 || !ids) return std::nullopt;
  return Guard{*most + 1, ids};
}

// True nowhere, as long as the ids are below the number compared with.
std::optional<Guard> MatchMask(const Value* mask) {
  while (IsOneOf(mask->node(), {aten::unsqueeze, aten::view, aten::reshape})) mask = mask->node()->input(0);
  const Node* node = mask->node();
  const Value* ids = node->kind() == aten::ge ? ChosenIds(node->input(0)) : nullptr;
  const auto bound = ids ? ConstInt(node->input(1)) : std::nullopt;
  return bound ? std::optional<Guard>({*bound, ids}) : std::nullopt;
}

}  // namespace

bool IsClamp(const Node* node) { return IsOneOf(node, {aten::clamp, aten::clamp_, aten::clamp_max, aten::clamp_max_}); }

std::optional<Guard> MatchGuard(const Node* node) {
  if (IsClamp(node)) return MatchClamp(node);
  if (IsOneOf(node, {aten::masked_fill, aten::masked_fill_})) return MatchMask(node->input(1));
  return std::nullopt;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// [part.squeeze(0) for part in parts], as the script compiler writes it:
//   %list = prim::ListConstruct(); %n = aten::len(%parts)
//   prim::Loop(%n, true): %part = aten::__getitem__(%parts, %i); %entry = aten::squeeze(%part, 0); aten::append(%list, %entry)
#include "passes/detect/squeezed_parts.h"

#include <algorithm>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Use;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// The one node that appends to the list, or null.
Node* AppenderOf(const Value* list) {
  Node* found = nullptr;
  for (const Use& use : list->uses()) {
    if (use.user->kind() != aten::append) continue;
    if (found || use.offset != 0 || use.user->output()->hasUses()) return nullptr;
    found = use.user;
  }
  return found;
}

// Runs its body once for each element of a list, which it answers, or null.
Value* LoopsOver(const Node* loop) {
  if (!loop || loop->kind() != prim::Loop || loop->inputs().size() != 2) return nullptr;
  const bool whole = ConstBool(loop->input(1)) == true && ConstBool(loop->blocks()[0]->outputs()[0]) == true;
  Node* count = loop->input(0)->node();
  return whole && count->kind() == aten::len ? count->input() : nullptr;
}

}  // namespace

bool IsOnlyRead(const Value* list, const Node* writer) {
  return std::all_of(list->uses().begin(), list->uses().end(), [&](const Use& use) {
    return use.user == writer || use.user->kind() == aten::__getitem__ || use.user->kind() == aten::len;
  });
}

std::optional<SqueezedParts> MatchSqueezedParts(Value* list) {
  Node* made = list->node();
  Node* append = AppenderOf(list);
  const bool fresh = made->kind() == prim::ListConstruct && made->inputs().empty();
  if (!fresh || !append || !IsOnlyRead(list, append)) return std::nullopt;
  Block* body = append->owningBlock();
  Node* loop = body->owningNode();
  Value* parts = LoopsOver(loop);
  if (!parts || loop->owningBlock() != made->owningBlock() || !IsOnlyRead(parts)) return std::nullopt;
  Node* squeeze = append->input(1)->node();
  const bool first = squeeze->kind() == aten::squeeze && squeeze->inputs().size() == 2 && ConstInt(squeeze->input(1)) == 0;
  if (!first) return std::nullopt;
  Node* item = squeeze->input(0)->node();
  const bool each = item->kind() == aten::__getitem__ && item->input(0) == parts && item->input(1) == body->inputs()[0];
  if (!each || item->owningBlock() != body || squeeze->owningBlock() != body) return std::nullopt;
  return SqueezedParts{parts, {made, loop, loop->input(0)->node(), item, squeeze, append}, loop};
}

}  // namespace autoep

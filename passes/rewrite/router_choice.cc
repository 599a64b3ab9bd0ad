// SPDX-License-Identifier: Apache-2.0
// From the top-k up: the group limit, the bias, the scores, the logits.
#include "passes/rewrite/router_choice.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "passes/detect/ir.h"
#include "passes/rewrite/row_count.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// The value that a chain of single uses begins with; null where another node than `kind` made it, or another reads it.
Value* Through(Value* value, c10::Symbol kind) {
  if (value == nullptr || value->node()->kind() != kind || value->uses().size() != 1) return nullptr;
  return value->node()->input(0);
}

bool IsShape(const Value* sizes, const std::vector<int64_t>& expected) {
  const auto found = ConstInts(sizes);
  return found && *found == expected;
}

//   %kept = aten::scatter_(%zeros, 1, %best, 1);  %zeros = aten::zeros_like(%group_scores)
//   _, %best = aten::topk(%group_scores, top_groups, -1, True, False)
Value* MatchKeptGroups(Value* kept, RouterForm* form) {
  Node* scatter = kept->node();
  if (scatter->kind() != aten::scatter_ && scatter->kind() != aten::scatter) return nullptr;
  if (kept->uses().size() != 1 || !IsLastOfTwo(scatter->input(1)) || ConstNumber(scatter->input(3)) != 1.0) return nullptr;
  Value* group_scores = Through(scatter->input(0), aten::zeros_like);
  Node* best = scatter->input(2)->node();
  if (group_scores == nullptr || best->kind() != aten::topk || scatter->input(2) != best->output(1)) return nullptr;
  if (best->input(0) != group_scores || !best->output(0)->uses().empty() || best->output(1)->uses().size() != 1) return nullptr;
  const auto count = ConstInt(best->input(1));
  if (!count || !IsLastOfTwo(best->input(2)) || ConstBool(best->input(3)) != true || ConstBool(best->input(4)) != false) {
    return nullptr;
  }
  form->top_groups = *count;
  return group_scores->uses().size() == 2 ? group_scores : nullptr;
}

// A list of sizes whose first is -1, or the number of the matrix's rows, which is told as -1, too.
std::optional<std::vector<int64_t>> RowSizes(const Value* list, const Value* matrix) {
  auto sizes = ConstInts(list);
  if (!sizes) {
    const std::vector<Value*> elements = ListElements(list);
    if (elements.empty() || !CountsRows(elements.front(), matrix)) return std::nullopt;
    sizes = {-1};
    for (size_t i = 1; i < elements.size(); ++i) {
      const auto size = ConstInt(elements[i]);
      if (!size) return std::nullopt;
      sizes->push_back(*size);
    }
  }
  return !sizes->empty() && sizes->front() == -1 ? sizes : std::nullopt;
}

// Whether a view to `list` makes of each of the matrix's rows one of these sizes, of which -1 may stand for one.
bool CutsRows(const Value* list, const Value* matrix, const std::vector<int64_t>& into) {
  const auto sizes = RowSizes(list, matrix);
  return sizes && std::equal(sizes->begin() + 1, sizes->end(), into.begin(), into.end(),
                             [](int64_t found, int64_t expected) { return found == expected || found == -1; });
}

//   %grouped = aten::view(%choice, [-1, G, E / G])
//   max:       %group_scores, _ = aten::max(%grouped, -1, False)
//   top2_sum:  %top, _ = aten::topk(%grouped, 2, -1, True, True);  %group_scores = aten::sum(%top, [-1], False, None)
Value* MatchGroupScores(Value* group_scores, RouterForm* form) {
  Node* node = group_scores->node();
  if (node->kind() == aten::max && node->inputs().size() == 3) {
    if (ConstInt(node->input(1)) != -1 || ConstBool(node->input(2)) != false || !node->output(1)->uses().empty()) return nullptr;
    form->group_score = "max";
    return node->input(0);
  }
  if (node->kind() != aten::sum || node->inputs().size() != 4) return nullptr;
  if (!IsShape(node->input(1), {-1}) || ConstBool(node->input(2)) != false || !IsNone(node->input(3))) return nullptr;
  Node* top = node->input(0)->node();
  if (top->kind() != aten::topk || node->input(0) != top->output(0) || top->output(0)->uses().size() != 1) return nullptr;
  if (ConstInt(top->input(1)) != 2 || ConstInt(top->input(2)) != -1 || ConstBool(top->input(3)) != true ||
      ConstBool(top->input(4)) != true || !top->output(1)->uses().empty()) {
    return nullptr;
  }
  form->group_score = "top2_sum";
  return top->input(0);
}

//   %mask = aten::reshape(aten::expand(aten::unsqueeze(%kept, -1), [-1, G, E / G]), [-1, E])
//   %limited = aten::masked_fill(%choice, aten::bitwise_not(aten::to(%mask, bool)), fill)
// also with the number of rows for -1, and -1 for one of a view's other sizes. Returns %choice; null where it is another masked
// fill.
Value* MatchGroupLimit(Node* fill, int64_t num_experts, RouterForm* form) {
  const auto number = ConstNumber(fill->input(2));
  std::optional<int64_t> dtype;
  Value* inverse = Through(fill->input(1), aten::bitwise_not);
  if (!number || inverse == nullptr || inverse->uses().size() != 1) return nullptr;
  Value* mask = StripCast(inverse, &dtype);
  if (dtype != static_cast<int64_t>(at::kBool)) return nullptr;
  Value* spread = Through(mask, aten::reshape);
  Value* choice = fill->input(0);
  if (spread == nullptr || !CutsRows(mask->node()->input(1), choice, {num_experts})) return nullptr;
  Value* column = Through(spread, aten::expand);
  const auto shape = column ? RowSizes(spread->node()->input(1), choice) : std::nullopt;
  if (!shape || shape->size() != 3 || (*shape)[1] * (*shape)[2] != num_experts || (*shape)[1] < 1) return nullptr;
  Value* kept = Through(column, aten::unsqueeze);
  if (kept == nullptr || ConstInt(column->node()->input(1)) != -1) return nullptr;
  Value* group_scores = MatchKeptGroups(kept, form);
  Value* grouped = group_scores ? MatchGroupScores(group_scores, form) : nullptr;
  if (grouped == nullptr || grouped->node()->kind() != aten::view || grouped->uses().size() != 1) return nullptr;
  if (grouped->node()->input(0) != choice || !CutsRows(grouped->node()->input(1), choice, {(*shape)[1], (*shape)[2]}))
    return nullptr;
  form->num_groups = (*shape)[1];
  form->group_fill = *number;
  return choice;
}

// A parameter, buffer or constant, also one seen as [1, E] or without its dimensions of size 1.
bool IsStored(const Value* value) {
  while (value->node()->kind() == aten::unsqueeze || value->node()->kind() == aten::squeeze) value = value->node()->input(0);
  const bool stored = value->node()->kind() == prim::GetAttr || value->node()->kind() == prim::Constant;
  return stored && value->type()->kind() == c10::TypeKind::TensorType;
}

// %choice = aten::add(%scores, %bias, 1), either way round.
Value* StripBias(Value* choice, RouterForm* form) {
  Node* add = choice->node();
  if (add->kind() != aten::add || add->inputs().size() != 3 || ConstNumber(add->input(2)) != 1.0) return choice;
  const bool first = IsStored(add->input(0));
  if (first == IsStored(add->input(1))) return choice;
  form->bias = add->input(first ? 0 : 1);
  return add->input(first ? 1 : 0);
}

// %scores = aten::softmax(%x, -1, dtype) or aten::sigmoid(%x)
Value* StripScore(Value* scores, RouterForm* form) {
  Node* node = scores->node();
  if (node->kind() == aten::sigmoid) {
    form->scores = "sigmoid";
    return node->input(0);
  }
  if (node->kind() != aten::softmax || !IsLastOfTwo(node->input(1))) return scores;
  if (!IsNone(node->input(2))) {
    form->score_dtype = KnownInt(node->input(2));
    if (!form->score_dtype) return scores;
  }
  form->scores = "softmax";
  return node->input(0);
}

bool IsProduct(const Value* value) {
  const c10::Symbol kind = value->node()->kind();
  return kind == aten::linear || kind == aten::matmul || kind == aten::mm || kind == aten::addmm;
}

}  // namespace

std::optional<int64_t> KnownInt(const Value* value) {
  while (value->node()->kind() == prim::unchecked_cast) value = value->node()->input();
  return ConstInt(value);
}

bool IsLastOfTwo(const Value* dim) {
  const auto value = KnownInt(dim);
  return value == -1 || value == 1;
}

Value* StripCast(Value* value, std::optional<int64_t>* dtype) {
  Node* node = value->node();
  if (node->kind() != aten::to || node->inputs().size() != 5 || node->input(1)->type()->kind() != c10::TypeKind::IntType)
    return value;
  const auto type = KnownInt(node->input(1));
  if (!type || ConstBool(node->input(2)) != false || ConstBool(node->input(3)) != false || !IsNone(node->input(4))) return value;
  *dtype = type;
  return node->input(0);
}

Value* StripFlatView(Value* value, int64_t num_experts) {
  Node* node = value->node();
  if (node->kind() != aten::view && node->kind() != aten::reshape) return value;
  return IsShape(node->input(1), {-1, num_experts}) ? node->input(0) : value;
}

std::optional<RouterChoice> MatchRouterChoice(Node* topk, int64_t num_experts, const torch::jit::AliasDb& aliases,
                                              RouterForm* form) {
  const auto sorted = ConstBool(topk->input(4));
  if (!sorted || !IsLastOfTwo(topk->input(2)) || ConstBool(topk->input(3)) != true) return std::nullopt;
  form->top_k = topk->input(1);
  form->sorted = *sorted;
  form->ids = topk->output(1);
  std::vector<const Value*> values = {form->ids};
  RouterChoice choice;
  Value* value = topk->input(0);
  values.push_back(value);
  if (value->node()->kind() == aten::masked_fill) {
    value = MatchGroupLimit(value->node(), num_experts, form);
    if (value == nullptr) return std::nullopt;
    values.push_back(value);
  }
  value = StripBias(value, form);
  choice.scores = StripFlatView(value, num_experts);
  value = StripScore(choice.scores, form);
  if (!form->score_dtype) value = StripCast(value, &form->score_dtype);
  if (form->scores == "none" && !IsProduct(value)) return std::nullopt;
  form->logits = value;
  values.insert(values.end(), {choice.scores, form->logits});
  if (form->bias) values.push_back(form->bias);
  for (const Value* each : values) {
    if (aliases.hasWriters(each)) return std::nullopt;
  }
  return choice;
}

}  // namespace autoep

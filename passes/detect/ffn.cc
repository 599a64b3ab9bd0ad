// SPDX-License-Identifier: Apache-2.0
// From an expert's last product up to its rows.
#include "passes/detect/ffn.h"

#include <algorithm>
#include <utility>

#include "passes/detect/activation.h"
#include "passes/detect/guards.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

void Append(std::vector<Node*>& into, const std::vector<Node*>& nodes) { into.insert(into.end(), nodes.begin(), nodes.end()); }

void AppendProjection(std::vector<Node*>& into, const Projection& projection) {
  Append(into, projection.nodes);
  Append(into, projection.weight.nodes);
  if (projection.bias) Append(into, projection.bias->nodes);
}

bool IsLastDim(const Value* dim, int64_t dims) {
  const auto at = ConstInt(dim);
  return at && (*at == -1 || *at == dims - 1);
}

// A value seen as rows of the projection's output it was cut from.
struct Cut {
  Value* whole;
  RowRange rows;  // count 0: all
  std::vector<Node*> nodes;
};

// %parts = aten::chunk(%whole, 2, -1) or aten::split(%whole, I, -1); %a, %b = prim::ListUnpack(%parts)
std::optional<Cut> MatchUnpackedHalf(Value* value, int64_t width, int64_t dims) {
  Node* unpack = value->node();
  if (unpack->kind() != prim::ListUnpack || unpack->outputs().size() != 2) return std::nullopt;
  Node* parts = unpack->input()->node();
  const int64_t half = width / 2;
  bool halves = false;
  if (parts->kind() == aten::chunk) halves = ConstInt(parts->input(1)) == 2;
  if (parts->kind() == aten::split) halves = ConstInt(parts->input(1)) == half;
  if (parts->kind() == aten::split_with_sizes || parts->kind() == aten::split) {
    halves |= ConstInts(parts->input(1)) == std::vector<int64_t>{half, half};
  }
  if (!halves || !IsLastDim(parts->input(2), dims)) return std::nullopt;
  return Cut{parts->input(0), {static_cast<int64_t>(value->offset()) * half, half, 1}, {unpack, parts}};
}

// %parts as above; %a = aten::__getitem__(%parts, 0)
std::optional<Cut> MatchItemHalf(Value* value, int64_t width, int64_t dims) {
  Node* item = value->node();
  if (item->kind() != aten::__getitem__) return std::nullopt;
  Node* parts = item->input(0)->node();
  const auto index = ConstInt(item->input(1));
  if (parts->kind() != aten::chunk || ConstInt(parts->input(1)) != 2 || !IsLastDim(parts->input(2), dims)) return std::nullopt;
  if (!index || *index < 0 || *index > 1) return std::nullopt;
  return Cut{parts->input(0), {*index * (width / 2), width / 2, 1}, {item, parts}};
}

// aten::slice(%whole, -1, begin, end, step). In front of it, slices that take everything ("[..., ::2]" has none).
std::optional<Cut> MatchSlice(Value* value, int64_t width, int64_t dims) {
  Node* slice = value->node();
  if (slice->kind() != aten::slice || !IsLastDim(slice->input(1), dims)) return std::nullopt;
  const auto step = ConstInt(slice->input(4));
  const auto begin = IsNone(slice->input(2)) ? std::optional<int64_t>(0) : ConstInt(slice->input(2));
  auto end = IsNone(slice->input(3)) ? std::optional<int64_t>(width) : ConstInt(slice->input(3));
  if (!step || *step < 1 || !begin || *begin < 0 || !end) return std::nullopt;
  *end = std::min(*end, width);
  if (*end <= *begin) return std::nullopt;
  return Cut{slice->input(0), {*begin, (*end - *begin + *step - 1) / *step, *step}, {slice}};
}

// Looks through no-ops and guards of ids.
Value* StripGuards(Value* value, at::ScalarType dtype, std::vector<Node*>& passed) {
  value = StripNoOps(value, dtype, &passed);
  while (value->node()->kind() == aten::masked_fill && MatchGuard(value->node())) {
    passed.push_back(value->node());
    value = StripNoOps(value->node()->input(0), dtype, &passed);
  }
  return value;
}

// Of stacked experts' ids: no guard of theirs may change one that is an expert's.
bool GuardsHold(const ExpertFfn& ffn) {
  return std::all_of(ffn.nodes.begin(), ffn.nodes.end(), [&](const Node* node) {
    const auto guard = MatchGuard(node);
    return !guard || (ffn.form().stacked && guard->bound >= ffn.down.weight.tensor.size(0));
  });
}

// `value` as a projection of a form, or as half of one.
std::optional<Half> MatchHalf(Value* value, const ExpertForm& form, const WeightFinder& weights, int64_t intermediate,
                              at::ScalarType dtype, std::vector<Node*>& nodes) {
  std::vector<Node*> passed;
  value = StripGuards(value, dtype, passed);
  if (auto whole = form.match(value, weights)) {
    if (whole->out() != intermediate) return std::nullopt;
    Append(nodes, passed);
    AppendProjection(nodes, *whole);
    return Half{*std::move(whole), {0, intermediate, 1}};
  }
  // The rank of the rows is not known here, and the last dimension is written as -1, 1 or 2: which of them is the last is
  // known once the product is: only the form with stacked weights, or 2-D tokens, have it, and a wrong one cannot have
  // 2 * I entries to cut.
  for (int64_t dims = 2; dims <= 3; ++dims) {
    const int64_t width = 2 * intermediate;
    auto cut = MatchUnpackedHalf(value, width, dims);
    if (!cut) cut = MatchItemHalf(value, width, dims);
    if (!cut) cut = MatchSlice(value, width, dims);
    if (!cut) continue;
    std::vector<Node*> more;
    auto whole = form.match(StripGuards(cut->whole, dtype, more), weights);
    if (!whole || whole->out() != width || cut->rows.count != intermediate) continue;
    Append(nodes, passed);
    Append(nodes, cut->nodes);
    Append(nodes, more);
    AppendProjection(nodes, *whole);
    return Half{*std::move(whole), cut->rows};
  }
  return std::nullopt;
}

bool SameEntry(const Weight& a, const Weight& b) {
  const auto same = [](const Value* x, const Value* y) { return x == y || (x && y && IndexTensor(x) == IndexTensor(y)); };
  return same(a.selected, b.selected) && a.at == b.at;
}

bool SameUnit(const Projection& a, const Projection& b) {
  if (a.bias && !a.form->stacked && !SameEntry(*a.bias, a.weight)) return false;
  return a.form == b.form && a.choice == b.choice && a.counts == b.counts && a.weight.tensor.dim() == b.weight.tensor.dim() &&
         SameEntry(a.weight, b.weight);
}

std::optional<ExpertFfn> TryActivation(const Projection& down, const ActivationMatch& act, const std::vector<Node*>& passed,
                                       const WeightFinder& weights) {
  ExpertFfn ffn;
  ffn.down = down;
  ffn.output = down.output;
  ffn.activation = act.name;
  ffn.activation_args = act.args;
  AppendProjection(ffn.nodes, down);
  Append(ffn.nodes, passed);
  Append(ffn.nodes, act.nodes);
  const at::ScalarType dtype = down.weight.tensor.scalar_type();
  auto up = MatchHalf(act.up, *down.form, weights, down.in(), dtype, ffn.nodes);
  if (!up || !SameUnit(up->projection, down) || !SameUnit(down, up->projection)) return std::nullopt;
  if (up->projection.out_expert_dim != down.rows_expert_dim) return std::nullopt;
  ffn.up = *std::move(up);
  ffn.rows = ffn.up.projection.rows;
  if (act.gate) {
    ffn.gate = MatchHalf(act.gate, *down.form, weights, down.in(), dtype, ffn.nodes);
    if (!ffn.gate || !SameUnit(ffn.gate->projection, down)) return std::nullopt;
    if (ffn.gate->projection.rows_expert_dim != ffn.up.projection.rows_expert_dim ||
        ffn.gate->projection.out_expert_dim != down.rows_expert_dim) {
      return std::nullopt;
    }
    if (ffn.gate->projection.rows != ffn.rows) {
      ffn.rows = StripNoOps(ffn.rows, dtype, &ffn.nodes);
      if (StripNoOps(ffn.gate->projection.rows, dtype, &ffn.nodes) != ffn.rows) return std::nullopt;
    }
    // Gate and up are different rows of one product, or whole products.
    const bool shared = ffn.gate->projection.output == ffn.up.projection.output;
    if (shared == (ffn.gate->rows == ffn.up.rows)) return std::nullopt;
  }
  std::vector<Node*> unique;
  for (Node* node : ffn.nodes) {
    if (std::find(unique.begin(), unique.end(), node) == unique.end()) unique.push_back(node);
  }
  ffn.nodes = std::move(unique);
  if (!GuardsHold(ffn)) return std::nullopt;
  return ffn;
}

}  // namespace

std::vector<Value*> ExpertFfn::Choices() const {
  std::vector<Value*> choices = {down.choice, down.weight.selected, down.bias_choice, up.projection.bias_choice};
  if (gate) choices.push_back(gate->projection.bias_choice);
  std::erase(choices, nullptr);
  return choices;
}

namespace {

std::optional<ExpertFfn> MatchUnscaled(Value* output, const WeightFinder& weights) {
  for (const ExpertForm* form : ExpertForms()) {
    const auto down = form->match(output, weights);
    if (!down) continue;
    std::vector<Node*> passed;
    const at::ScalarType dtype = down->weight.tensor.scalar_type();
    Value* hidden = StripNoOps(down->rows, dtype, &passed);
    for (const ActivationMatch& act : MatchActivations(hidden, dtype)) {
      if (auto ffn = TryActivation(*down, act, passed, weights)) return ffn;
    }
  }
  return std::nullopt;
}

}  // namespace

// %output = aten::mul(%done, scale), as nllb scales what its experts answer
std::optional<ExpertFfn> MatchFfn(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  if (node->kind() != aten::mul && node->kind() != aten::mul_) return MatchUnscaled(output, weights);
  const auto scale = ConstNumber(node->input(1));
  if (!scale || *scale == 0) return std::nullopt;
  auto ffn = MatchUnscaled(node->input(0), weights);
  if (!ffn) return std::nullopt;
  ffn->scale = *scale;
  ffn->output = output;
  ffn->nodes.insert(ffn->nodes.begin(), node);
  return ffn;
}

}  // namespace autoep

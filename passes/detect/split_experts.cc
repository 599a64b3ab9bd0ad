// SPDX-License-Identifier: Apache-2.0
// Form split_experts (granitemoe of transformers 4): rows sorted by expert and split by sizes that the trace made constant, so
// that the file serves one choice of sizes only.
//   %sizes = prim::ListConstruct(2, 0, ..); %parts = aten::split_with_sizes(%rows, %sizes, 0); %x0, %x1, .. =
//   prim::ListUnpack(%parts) %y0 = aten::linear(%x0, aten::select(%W, 0, 0), None), ..; %out = aten::cat([%y0, %y1, ..], 0)      W
//   [E, out, in], or, as freezing leaves it, a tensor [out, in] for each expert
#include "passes/detect/split_experts.h"

#include <c10/util/Exception.h>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// The list's element `e` as the product of part `e` with matrix `e`: its weight, or nullopt.
std::optional<Weight> MatchElement(Value* element, size_t e, const Node* unpack, const WeightFinder& weights) {
  Node* product = element->node();
  if (product->kind() != aten::linear || !IsNone(product->input(2))) return std::nullopt;
  const Value* part = product->input(0);
  if (part->node() != unpack || part->offset() != e) return std::nullopt;
  auto weight = weights.Find(product->input(1));
  if (!weight || weight->swapped || weight->selected || weight->dim() != 2) return std::nullopt;
  return weight;
}

// Entry `e` of the stack of which `first` is an entry, or a tensor like `first`.
bool Continues(const Weight& weight, const Weight& first, size_t e) {
  if (first.at) return weight.name == first.name && weight.at == static_cast<int64_t>(e);
  return !weight.at && weight.tensor.sizes() == first.tensor.sizes();
}

std::optional<Projection> Match(Value* output, const WeightFinder& weights) {
  Node* cat = output->node();
  if (cat->kind() != aten::cat || ConstInt(cat->input(1)) != 0) return std::nullopt;
  Node* list = cat->input(0)->node();
  if (list->kind() != prim::ListConstruct || list->inputs().empty() || list->input(0)->node()->inputs().empty())
    return std::nullopt;
  Node* unpack = list->input(0)->node()->input(0)->node();
  if (unpack->kind() != prim::ListUnpack || unpack->outputs().size() != list->inputs().size()) return std::nullopt;
  Node* split = unpack->input()->node();
  if (split->kind() != aten::split_with_sizes || ConstInt(split->input(2)) != 0) return std::nullopt;
  const auto sizes = ConstInts(split->input(1));
  if (!sizes || sizes->size() != list->inputs().size()) return std::nullopt;
  Projection projection;
  projection.form = &SplitExpertsForm();
  projection.output = output;
  projection.rows = split->input(0);
  projection.counts = *sizes;
  projection.nodes = {cat, list};
  for (size_t e = 0; e < list->inputs().size(); ++e) {
    auto weight = MatchElement(list->input(e), e, unpack, weights);
    if (!weight || !Continues(*weight, e == 0 ? *weight : projection.weight, e)) return std::nullopt;
    projection.nodes.push_back(list->input(e)->node());
    if (e == 0) {
      projection.weight = *std::move(weight);
    } else {
      projection.weight.nodes.insert(projection.weight.nodes.end(), weight->nodes.begin(), weight->nodes.end());
    }
  }
  const bool stacked = projection.weight.at.has_value();
  if (stacked && projection.weight.tensor.size(0) != static_cast<int64_t>(sizes->size())) return std::nullopt;
  projection.weight.at = std::nullopt;
  projection.nodes.push_back(unpack);
  projection.nodes.push_back(split);
  return projection;
}

}  // namespace

bool HasTensorPerExpert(const Projection& projection) {
  return projection.form == &SplitExpertsForm() && projection.weight.tensor.dim() == 2;
}

Weight TensorOfExpert(const Projection& projection, int64_t e, const WeightFinder& weights) {
  Node* list = projection.output->node()->input(0)->node();
  auto weight = weights.Find(list->input(e)->node()->input(1));
  TORCH_CHECK(weight, "expert ", e, " has no tensor of its own");
  return *std::move(weight);
}

const ExpertForm& SplitExpertsForm() {
  static const ExpertForm form = {"split_experts", &Match, true, nullptr};
  return form;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Form grouped_mm (transformers 5, the default): rows sorted by expert, one grouped product.
//   %out = aten::_grouped_mm(%rows, %W, %offsets, None, None)    W [E, in, out], often transpose(W', -2, -1)
//   and %out + aten::index(%bias, [%ids_of_rows])
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>

#include "passes/detect/form.h"
#include "passes/detect/gather.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

std::optional<Projection> MatchProduct(Value* output, const WeightFinder& weights) {
  static const auto kGroupedMm = c10::Symbol::fromQualString("aten::_grouped_mm");
  Node* node = output->node();
  if (node->kind() != kGroupedMm || !IsNone(node->input(3))) return std::nullopt;
  auto weight = weights.Find(node->input(1));
  if (!weight || weight->dim() != 3) return std::nullopt;
  // out_dtype, if given, must be what comes out anyway.
  if (!IsNone(node->input(4)) && ConstInt(node->input(4)) != static_cast<int64_t>(weight->tensor.scalar_type())) {
    return std::nullopt;
  }
  Projection projection;
  projection.form = &GroupedMmForm();
  projection.output = output;
  projection.rows = node->input(0);
  projection.stored_in_out = !weight->swapped;
  projection.weight = *std::move(weight);
  projection.choice = node->input(2);
  projection.nodes = {node};
  return projection;
}

std::optional<Projection> Match(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  if (node->kind() != aten::add && node->kind() != aten::add_) return MatchProduct(output, weights);
  if (ConstNumber(node->input(2)) != 1.0) return std::nullopt;
  auto projection = MatchProduct(node->input(0), weights);
  auto bias = MatchGather(node->input(1), weights);
  if (!projection || !bias || bias->weight.tensor.dim() != 2) return std::nullopt;
  projection->bias = std::move(bias->weight);
  projection->bias_choice = bias->ids;
  projection->output = output;
  projection->nodes.push_back(node);
  return projection;
}

// The expert of row r is the first whose group ends behind r.
at::Tensor ExpertsOfRows(const at::Tensor& rows, const at::Tensor& offsets) {
  TORCH_CHECK(offsets.dim() == 1 && rows.dim() == 2 && offsets.numel() > 0, "offsets do not fit");
  TORCH_CHECK(offsets[-1].item().toLong() == rows.size(0), "the last group does not end with the rows");
  return at::searchsorted(offsets.to(at::kLong), at::arange(rows.size(0)), /*out_int32=*/false, /*right=*/true);
}

}  // namespace

const ExpertForm& GroupedMmForm() {
  static const ExpertForm form = {"grouped_mm", &Match, true, &ExpertsOfRows};
  return form;
}

}  // namespace autoep

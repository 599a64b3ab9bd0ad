// SPDX-License-Identifier: Apache-2.0
// Form batched_mm (transformers 5): each row's own matrix is gathered, then one batched product of rows with them.
//   %w = aten::index(%W, [%ids]);  %out = aten::squeeze(aten::bmm(%w, aten::unsqueeze(%rows, -1)), -1)      W [E, out, in]
//   %w = aten::index(%W, [%ids]);  %out = aten::squeeze(aten::bmm(aten::unsqueeze(%rows, 1), %w), 1)        W [E, in, out]
//   and %out + aten::index(%bias, [%ids])
#include "passes/detect/form.h"
#include "passes/detect/gather.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

// The operand of a batched product that is a row with a dimension of one put in at `dim`.
Value* MatchRow(Value* value, int64_t dim) {
  Node* node = value->node();
  if (node->kind() != aten::unsqueeze) return nullptr;
  const auto at = ConstInt(node->input(1));
  return at && (*at == dim || *at + 3 == dim) ? node->input(0) : nullptr;
}

std::optional<Projection> MatchProduct(Value* output, const WeightFinder& weights) {
  Node* squeeze = output->node();
  if (squeeze->kind() != aten::squeeze || squeeze->inputs().size() != 2) return std::nullopt;
  const auto dim = ConstInt(squeeze->input(1));
  Node* product = squeeze->input(0)->node();
  if (!dim || (product->kind() != aten::bmm && product->kind() != aten::matmul)) return std::nullopt;
  const int64_t squeezed = *dim < 0 ? *dim + 3 : *dim;
  const bool weight_first = squeezed == 2;
  if (!weight_first && squeezed != 1) return std::nullopt;
  Value* rows = MatchRow(product->input(weight_first ? 1 : 0), squeezed);
  auto gathered = MatchGather(product->input(weight_first ? 0 : 1), weights);
  if (!rows || !gathered || gathered->weight.tensor.dim() != 3) return std::nullopt;
  Projection projection;
  projection.form = &BatchedMmForm();
  projection.output = output;
  projection.rows = rows;
  projection.stored_in_out = weight_first ? gathered->weight.swapped : !gathered->weight.swapped;
  projection.weight = std::move(gathered->weight);
  projection.choice = gathered->ids;
  projection.nodes = {squeeze, product, product->input(weight_first ? 1 : 0)->node()};
  return projection;
}

std::optional<Projection> Match(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  if (node->kind() != aten::add && node->kind() != aten::add_) return MatchProduct(output, weights);
  if (ConstNumber(node->input(2)) != 1.0) return std::nullopt;
  auto projection = MatchProduct(node->input(0), weights);
  auto bias = MatchGather(node->input(1), weights);
  if (!projection || !bias || bias->weight.tensor.dim() != 2 || bias->ids != projection->choice) return std::nullopt;
  projection->bias = std::move(bias->weight);
  projection->output = output;
  projection->nodes.push_back(node);
  return projection;
}

at::Tensor ExpertsOfRows(const at::Tensor& rows, const at::Tensor& ids) {
  TORCH_CHECK(rows.dim() == 2 && ids.dim() == 1 && ids.size(0) == rows.size(0), "ids do not fit the rows");
  return ids.to(at::kLong);
}

}  // namespace

const ExpertForm& BatchedMmForm() {
  static const ExpertForm form = {"batched_mm", &Match, true, &ExpertsOfRows};
  return form;
}

}  // namespace autoep

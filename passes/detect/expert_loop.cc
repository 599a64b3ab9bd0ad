// SPDX-License-Identifier: Apache-2.0
// Form expert_loop: a loop over experts that the trace or the script compiler unrolled; each expert is products with its own
// matrices, on all tokens or on those that chose it.
//   %out = aten::linear(%rows, %W, %bias)          W [out, in]
//   %out = aten::matmul / mm(%rows, %W)            W [in, out], often t(W'); then perhaps aten::add(%out, %bias)
//   %out = aten::addmm(%bias, %rows, %W, 1, 1)
#include "passes/detect/form.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

struct Operands {
  Value* rows = nullptr;
  Value* weight = nullptr;
  Value* bias = nullptr;  // null: none
  bool out_in = false;    // the product takes W as [out, in]
};

std::optional<Operands> MatchOperands(Node* node) {
  const auto inputs = node->inputs();
  if (node->kind() == aten::linear) return Operands{inputs[0], inputs[1], IsNone(inputs[2]) ? nullptr : inputs[2], true};
  if (node->kind() == aten::matmul || node->kind() == aten::mm) return Operands{inputs[0], inputs[1], nullptr, false};
  if (node->kind() == aten::addmm && ConstNumber(inputs[3]) == 1.0 && ConstNumber(inputs[4]) == 1.0) {
    return Operands{inputs[1], inputs[2], inputs[0], false};
  }
  return std::nullopt;
}

std::optional<Projection> MatchProduct(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  const auto operands = MatchOperands(node);
  if (!operands) return std::nullopt;
  auto weight = weights.Find(operands->weight);
  if (!weight || weight->dim() != 2) return std::nullopt;
  Projection projection;
  projection.form = &ExpertLoopForm();
  projection.output = output;
  projection.rows = operands->rows;
  projection.stored_in_out = operands->out_in == weight->swapped;
  projection.nodes = {node};
  if (operands->bias) {
    auto bias = weights.Find(operands->bias);
    if (!bias || bias->dim() != 1 || bias->swapped) return std::nullopt;
    projection.bias = *std::move(bias);
  }
  projection.weight = *std::move(weight);
  return projection;
}

std::optional<Projection> Match(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  if (node->kind() != aten::add && node->kind() != aten::add_) return MatchProduct(output, weights);
  if (ConstNumber(node->input(2)) != 1.0) return std::nullopt;
  auto projection = MatchProduct(node->input(0), weights);
  if (!projection || projection->bias) return std::nullopt;
  auto bias = weights.Find(node->input(1));
  if (!bias || bias->dim() != 1 || bias->swapped) return std::nullopt;
  projection->bias = *std::move(bias);
  projection->output = output;
  projection->nodes.push_back(node);
  return projection;
}

}  // namespace

const ExpertForm& ExpertLoopForm() {
  static const ExpertForm form = {"expert_loop", &Match, false, nullptr};
  return form;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Form dense_stack: every expert on every row, in one product with the stacked weights.
//   %out = aten::bmm(%rows, %W)                 rows [E, T, in], W [E, in, out], often transpose(W', 1, 2)
//   %out = aten::matmul(%rows, %W)              rows [T, in] or [E, T, in]; out [E, T, out]
//   %out = aten::einsum("te..", [%rows, %W])    any order of letters; W's first is the expert, and the result has it
//   and %out + aten::unsqueeze(%bias, 1)        bias [E, out], where the experts are the first dimension
#include <ATen/core/Tensor.h>

#include <string>

#include "passes/detect/form.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

std::optional<Projection> MatchMatmul(Node* node, const WeightFinder& weights) {
  auto weight = weights.Find(node->input(1));
  if (!weight || weight->tensor.dim() != 3 || weight->dim() != 3) return std::nullopt;
  Projection projection;
  projection.rows = node->input(0);
  projection.stored_in_out = !weight->swapped;
  projection.rows_expert_dim = 0;
  projection.weight = *std::move(weight);
  return projection;
}

// The letters of an einsum: rows' and the weight's indices, and the result's.
struct Letters {
  std::string rows, weight, out;
};

std::optional<Letters> ParseEquation(std::string equation) {
  std::erase(equation, ' ');
  const size_t comma = equation.find(','), arrow = equation.find("->");
  if (comma == std::string::npos || arrow == std::string::npos || comma > arrow || equation.find('.') != std::string::npos) {
    return std::nullopt;
  }
  return Letters{equation.substr(0, comma), equation.substr(comma + 1, arrow - comma - 1), equation.substr(arrow + 2)};
}

int At(const std::string& letters, char letter) {
  const size_t at = letters.find(letter);
  return at == std::string::npos ? -1 : static_cast<int>(at);
}

std::optional<Projection> MatchEinsum(Node* node, const WeightFinder& weights) {
  const auto equation = ConstString(node->input(0));
  const std::vector<Value*> operands = ListElements(node->input(1));
  auto letters = equation ? ParseEquation(*equation) : std::nullopt;
  if (!letters || operands.size() != 2) return std::nullopt;
  auto weight = weights.Find(operands[1]);
  Value* rows = operands[0];
  if (!weight) {
    weight = weights.Find(operands[0]);
    rows = operands[1];
    std::swap(letters->rows, letters->weight);
  }
  if (!weight || weight->tensor.dim() != 3 || weight->dim() != 3 || weight->swapped || letters->weight.size() != 3) return std::nullopt;
  const auto& [of_rows, of_weight, of_out] = *letters;
  if (of_rows.empty() || of_out.empty()) return std::nullopt;
  const char expert = of_weight[0], in = of_rows.back(), out = of_out.back();
  const bool in_out = of_weight[1] == in && of_weight[2] == out;
  if ((!in_out && (of_weight[1] != out || of_weight[2] != in)) || in == out || expert == in || expert == out) return std::nullopt;
  // All other letters are the rows' own and stay, in their order, beside the expert's.
  std::string kept = of_rows.substr(0, of_rows.size() - 1), made = of_out.substr(0, of_out.size() - 1);
  const int in_dim = At(kept, expert), out_dim = At(made, expert);
  if (out_dim < 0) return std::nullopt;
  std::erase(kept, expert);
  std::erase(made, expert);
  if (kept != made || made.size() + 2 != of_out.size() || kept.find(in) != std::string::npos) return std::nullopt;
  Projection projection;
  projection.rows = rows;
  projection.stored_in_out = in_out;
  projection.rows_expert_dim = in_dim;
  projection.out_expert_dim = out_dim;
  projection.weight = *std::move(weight);
  return projection;
}

std::optional<Projection> MatchProduct(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  std::optional<Projection> projection;
  if (node->kind() == aten::bmm || node->kind() == aten::matmul) {
    projection = MatchMatmul(node, weights);
    if (projection) projection->out_expert_dim = 0;
  } else if (node->kind() == aten::einsum) {
    projection = MatchEinsum(node, weights);
  }
  if (!projection) return std::nullopt;
  projection->form = &DenseStackForm();
  projection->output = output;
  projection->nodes = {node};
  if (node->kind() == aten::einsum) projection->nodes.push_back(node->input(1)->node());
  return projection;
}

std::optional<Projection> Match(Value* output, const WeightFinder& weights) {
  Node* node = output->node();
  if (node->kind() != aten::add && node->kind() != aten::add_) return MatchProduct(output, weights);
  if (ConstNumber(node->input(2)) != 1.0) return std::nullopt;
  Node* row = node->input(1)->node();
  if (row->kind() != aten::unsqueeze || ConstInt(row->input(1)) != 1) return std::nullopt;
  auto projection = MatchProduct(node->input(0), weights);
  auto bias = weights.Find(row->input(0));
  if (!projection || projection->out_expert_dim != 0 || !bias || bias->tensor.dim() != 2 || bias->dim() != 2 || bias->swapped) {
    return std::nullopt;
  }
  bias->nodes.push_back(row);
  projection->bias = *std::move(bias);
  projection->output = output;
  projection->nodes.push_back(node);
  return projection;
}

}  // namespace

const ExpertForm& DenseStackForm() {
  static const ExpertForm form = {"dense_stack", &Match, true, nullptr};
  return form;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// ExpertForm: one way in which graphs write the product of token rows with their experts' weights. One file a form; the
// feed-forward around the products (ffn.h) and the proof that rows go and come back right (proof.h) are shared.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <string_view>
#include <vector>

#include "passes/detect/weight.h"

namespace autoep {

struct ExpertForm;

// rows [.., in] -> output [.., out], each row by the matrix of its expert.
struct Projection {
  const ExpertForm* form = nullptr;
  torch::jit::Value* output = nullptr;
  torch::jit::Value* rows = nullptr;
  Weight weight;
  bool stored_in_out = false;  // the stored matrix is [in, out], not [out, in]
  std::optional<Weight> bias;
  torch::jit::Value* bias_choice = nullptr;  // ids by which a stacked bias was gathered, where they are not `choice`
  torch::jit::Value* choice = nullptr;  // what says which expert a row meets, if the form has it: offsets, ids
  std::vector<int64_t> counts;          // instead of `choice`: rows of each expert, constants of the graph
  // Where a dense product has its dimension of experts; -1: none.
  int rows_expert_dim = -1;
  int out_expert_dim = -1;
  std::vector<torch::jit::Node*> nodes;  // from rows to output, without those of weights

  int64_t in() const { return weight.tensor.size(stored_in_out ? -2 : -1); }
  int64_t out() const { return weight.tensor.size(stored_in_out ? -1 : -2); }
};

struct ExpertForm {
  std::string_view name;  // MoeLayer::form
  // The product that ends in `output`, or nullopt. Looks at the nodes right above only.
  std::optional<Projection> (*match)(torch::jit::Value* output, const WeightFinder& weights);
  // One unit holds all experts (a stacked weight), or a unit is one expert.
  bool stacked = false;
  // The expert of each row, int64, of rows' shape without the last dimension. `choice` as evaluated. Null where a unit is
  // one expert, has all in a dimension of its own, or counts say it. Throws c10::Error where `choice` does not fit.
  at::Tensor (*experts_of_rows)(const at::Tensor& rows, const at::Tensor& choice) = nullptr;
};

const ExpertForm& GroupedMmForm();
const ExpertForm& BatchedMmForm();
const ExpertForm& DenseStackForm();
const ExpertForm& ExpertLoopForm();
const ExpertForm& SplitExpertsForm();

// All forms, the most specific first.
const std::vector<const ExpertForm*>& ExpertForms();

}  // namespace autoep

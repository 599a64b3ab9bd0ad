// SPDX-License-Identifier: Apache-2.0
// Proof by evaluation that a region computes sum over k of weights[t, k] * Expert[ids[t, k]](tokens[t]).
//
// Writing styles of dispatch and combine vary without end, so their index arithmetic is run, not read. Each expert's
// feed-forward, which ffn.h verified node by node, is replaced by x -> a[e] * x + b[e] with small whole numbers a and b; the
// rest of the region consists of the ops of region.cc alone. Why agreement on the trials is a proof: those ops move rows,
// compare, count and combine linearly; so each output row is a polynomial of low degree in the weights, the a, the b and
// the token rows, whose coefficients depend on ids and on sizes only. Random values separate two such polynomials, a and b
// apart separate an expert's input from its output (weights on the input are no weights on the output), random channels
// separate channels, and the ids cover every expert in every slot, all tokens on the same experts, single tokens, and
// every choice where there are few. Weights come in four scales, so that a threshold on them is seen. All numbers are
// exact in bfloat16, so the comparison is exact.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <string>
#include <vector>

#include "passes/detect/cuts.h"
#include "passes/detect/interpreter.h"
#include "passes/detect/region.h"
#include "passes/detect/router.h"
#include "passes/detect/served.h"

namespace autoep {

// Where made-up tensors enter.
struct Stage {
  const torch::jit::Module* self = nullptr;
  torch::jit::Graph* graph = nullptr;
  const ExpertUnits* units = nullptr;
  const Router* router = nullptr;
  torch::jit::Value* root = nullptr;  // [T, H] or [B, S, H]: what tokens are a view of
  int root_rank = 3;
  int64_t hidden = 0;
  at::ScalarType dtype = at::kFloat;      // of the experts' weights
  const ServedExperts* served = nullptr;  // of a baked loop: the trials keep to what it can serve
  int64_t choices = 0;                    // .. with so many experts a token
  Tokens tokens = kShapeTokens;           // to infer shapes with
};

// Runs `steps` from the root through the gate on kShapeTokens tokens with made-up logits, and tells what values became.
// Values that are no tensors are left out. Throws c10::Error.
ShapeTable InferShapes(const Stage& stage, const GraphFlow& flow, const std::set<int>& steps);

// A value of which the region reads nothing but its shape.
struct ShapeGiven {
  const torch::jit::Value* value = nullptr;
  RowShape rows;
  at::ScalarType dtype = at::kFloat;
};

struct Claim {
  Stage stage;
  std::set<int> steps;  // the region
  std::vector<ShapeGiven> shapes;
  torch::jit::Value* tokens = nullptr;
  torch::jit::Value* out = nullptr;
  Cut cut;
  bool weights_on_input = false;
  bool negative_weights = false;  // try them too
  std::vector<int> units;         // of the region; those with the same weights once
};

// In a list of units by expert.
inline constexpr int kNoUnit = -1;    // none answers
inline constexpr int kIdentity = -2;  // the token itself is the answer
inline constexpr int kOther = -3;     // neither a unit nor the token

// For units that are one expert each: the unit of each expert, found by giving each its own answer. Throws c10::Error.
std::vector<int> FindUnitOfExpert(const Claim& claim, const GraphFlow& flow);

// Empty if the claim holds, else what differed. `unit_of_expert` is empty for a stacked form.
std::string CheckClaim(const Claim& claim, const GraphFlow& flow, const std::vector<int>& unit_of_expert);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The half of a RouterForm from the logits to the chosen ids, and the small predicates that both halves share.
#pragma once

#include "passes/rewrite/router_form.h"

namespace autoep {

// A constant int, also one that a scripted branch on None has narrowed: prim::unchecked_cast.
std::optional<int64_t> KnownInt(const torch::jit::Value* value);

// Whether `dim` says the last dimension of a 2-D tensor.
bool IsLastOfTwo(const torch::jit::Value* dim);

// Looks through aten::to(%x, <dtype>, false, false, None). Returns %x and sets `dtype`; anything else stays as it is.
torch::jit::Value* StripCast(torch::jit::Value* value, std::optional<int64_t>* dtype);

struct RouterChoice {
  torch::jit::Value* scores = nullptr;  // what the bias is added to
};

// Fills form.logits to form.sorted and form.ids from `topk` upwards.
std::optional<RouterChoice> MatchRouterChoice(torch::jit::Node* topk, int64_t num_experts, const torch::jit::AliasDb& aliases,
                                              RouterForm* form);

// Looks through aten::view or aten::reshape(%scores, [-1, num_experts]), which leaves 2-D scores as they are.
torch::jit::Value* StripFlatView(torch::jit::Value* value, int64_t num_experts);

}  // namespace autoep

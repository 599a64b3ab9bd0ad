// SPDX-License-Identifier: Apache-2.0
// The dense mathematics of a rebuilt block, in ops of LibTorch's own: what verify compares a converted model with where the
// source itself is wrong.
#pragma once

#include "passes/detect/match.h"

namespace autoep {

// Makes every use of the block's sum after `match.insert_after` read sum over e of Expert_e(tokens) * (sum over k of weights
// where ids are e) instead, which it returns; each expert run on all tokens with the source's own tensors. `match` is of a rebuilt
// layer.
torch::jit::Value* InsertDenseExperts(torch::jit::Graph& graph, const BlockMatch& match);

}  // namespace autoep

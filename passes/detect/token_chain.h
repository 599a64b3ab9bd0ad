// SPDX-License-Identifier: Apache-2.0
// Where the rows that an expert reads come from.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <vector>

#include "passes/detect/ffn.h"
#include "passes/detect/flow.h"
#include "passes/detect/router.h"

namespace autoep {

// The value that these rows were kept or picked from.
torch::jit::Value* RootOfRows(torch::jit::Value* rows);

// The values of the top block from the expert's rows back to their root, through what keeps or picks rows; empty where the root
// lies in another block. Where factors meet behind the gate, the one goes on that does not come from it: weights may act on the
// input.
std::vector<torch::jit::Value*> FindTokenChain(const ExpertFfn& expert, const torch::jit::Graph& graph, const GraphFlow& flow,
                                               const Router& router);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Simplifications of a graph that change no value: constant branches and dead code.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <memory>

namespace autoep {

// Replaces each prim::If whose condition is a constant, or a test for None that the types decide, by the branch taken, in
// nested blocks too. Attributes such as `training` are not constants: they can be set on a loaded module.
void FoldConstantIfs(torch::jit::Block* block);

// Runs LibTorch's dead code elimination, which sees aliases, until nothing changes: one run leaves some in-place chains.
void RemoveDeadCode(const std::shared_ptr<torch::jit::Graph>& graph);

}  // namespace autoep

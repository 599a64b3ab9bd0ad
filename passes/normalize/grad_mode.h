// SPDX-License-Identifier: Apache-2.0
// A script's `with torch.no_grad()` where it changes nothing.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

namespace autoep {

// Removes, in nested blocks too, each object that switches the gradient mode and is entered and left once in one block,
// where what is computed between the two has no gradient in any mode: numbers, counts, indices, truths.
void RemoveIdleGradModes(torch::jit::Block* block);

}  // namespace autoep

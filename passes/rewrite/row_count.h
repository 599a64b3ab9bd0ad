// SPDX-License-Identifier: Apache-2.0
// Which integers of a graph are a matrix's number of rows.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

namespace autoep {

// Whether `count` is the number of rows of `matrix`, which is 2-D: its first size, or that of what it was made of row by row, or
//   %count = aten::Int(aten::mul(%batch, %length));  %batch = aten::size(%x, 0);  %length = aten::size(%x, 1)
// where its rows come from
//   %flat = aten::view(%x, [-1, aten::size(%x, 2)])
// Tokens are [T, H] or [B, S, H], as detection ran them, so that the size that stays is the last.
bool CountsRows(const torch::jit::Value* count, const torch::jit::Value* matrix);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Small MoE blocks in TorchScript source, for tests that change a line and see whether the matcher notices.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <ostream>
#include <string>

#include "passes/detect/match.h"
#include "tests/passes/replace.h"

namespace autoep::testing {

inline constexpr int64_t kExperts = 6;
inline constexpr int64_t kTopK = 2;
inline constexpr int64_t kHidden = 16;
inline constexpr int64_t kWidth = 12;

// `source` with each "{name}" as the forms below have it: {route} makes x [T, 16], w [T, 2] and ids [T, 2] from `hidden`.
std::string GroupedMmSource();
std::string GroupedOfFirstLogits();  // of a router that makes logits for something else too
std::string BatchedMmSource();
// A loop over experts that a trace unrolled. `expert` is one turn of it, with "#" for the expert's number.
std::string LoopSource(const std::string& expert);
std::string SparseExpert();       // where, gather, index_add_
std::string ConditionalExpert();  // the same under prim::If
std::string DenseExpert();        // every token, times its share

// A module with the parameters that the sources use: gate [E, H]; gate_up [E, 2I, H], down [E, H, I], and their biases; flat_w1,
// flat_w2 and flat_w3 [E * I, H]; and for each expert # w1_# and w3_# [I, H], w2_# [H, I], b2_# [H].
torch::jit::Module MakeBlock(const std::string& source);

// MatchBlocks on a prepared copy of the block's forward.
struct Matched {
  std::shared_ptr<torch::jit::Graph> graph;
  MatchOutcome outcome;
};
Matched Match(const torch::jit::Module& block);

// A block that matches, and a change by which it no longer is one that may be taken.
struct NearMiss {
  std::string name;
  std::string source;
  std::string from, to;
  std::string predicate;  // part of the reason; "": none, nothing says that it is a router
};

void PrintTo(const NearMiss& miss, std::ostream* out);

// The block matches; changed it is refused for that reason alone, with the path of the block and a node.
void ExpectNearMiss(const NearMiss& miss);

}  // namespace autoep::testing

// SPDX-License-Identifier: Apache-2.0
// The block matcher: one code path for detection, which runs it on copies, and for the rewrite, which runs it on the
// block's own graph after preparing that graph in place.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <string>
#include <vector>

#include "passes/detect/ffn.h"
#include "passes/detect/moe_layer.h"

namespace autoep {

// How a router hands over its choice.
enum class Routing {
  kPairs,  // ids and weights, [T, k] each
  kTable,  // weights [T, E], at most k of a row other than zero
  kMask,   // a mask [T, E], at most k of a row true, and weights [T, E], or one a token
};

// A match in one prepared graph. Pointers live as long as the graph is not changed.
struct BlockMatch {
  MoeLayer layer;
  torch::jit::Value* tokens = nullptr;  // [T, H], what the experts read
  Routing routing = Routing::kPairs;
  torch::jit::Value* ids = nullptr;          // [T, k] int64; for a table or a mask where its entries are, or null: not known
  torch::jit::Value* mask = nullptr;         // [T, E] bool, for Routing::kMask
  torch::jit::Value* weights = nullptr;      // [T, k], [T, E], or one a token
  bool one_weight = false;                   // the latter, with a mask
  double weights_scale = 1.0;                // multiplies what the experts answer; the rewrite puts it into the weights
  int64_t identity_experts = 0;              // ids layer.num_experts and up: they answer the token itself
  torch::jit::Value* out = nullptr;          // [T, H], the weighted sum over the choices; every use of it after
                                             // `insert_after` is to read combine's result instead
  torch::jit::Node* insert_after = nullptr;  // in the graph's top block; the EP ops go right behind it
  at::ScalarType out_dtype = at::kFloat;     // dtype of `out`; the rewrite casts combine's result where it differs
  // False: tokens, ids, weights and out are 2-D as said above. True: they may have more leading dimensions ([B, S, H]), or, with
  // one choice, no last one; the rewrite reshapes tokens to [-1, H], ids and weights to [-1, k], and combine's result to the
  // shape of tokens.
  bool flatten = false;
  std::vector<torch::jit::Node*> capacity_tests;  // of the router: count < constant
  std::vector<torch::jit::Node*> consumed;        // nodes that must be gone after the rewrite
  std::vector<ExpertFfn> rebuilt;                 // of a rebuilt layer: its experts by number, or one with stacked weights
};

struct MatchOutcome {
  std::vector<BlockMatch> matches;
  std::vector<Miss> refusals;
  std::vector<Miss> unmet;  // a router whose choice meets no experts in this graph: a caller's graph may hold them
};

// Inlines every callee by its raw graph, in place, then normalises in place: tuples lowered, constant prim::If folded,
// gradient modes that change nothing removed, dead code removed to a fixpoint. The same on a copy and on the real graph.
// `graph` is `forward` of `self`, or a copy.
void PrepareBlockGraph(const std::shared_ptr<torch::jit::Graph>& graph);

class ProofMemory;

// Finds the MoE blocks of a prepared graph; reads no tensor values. `path` is the module path of `self`, for messages. With a
// memory, what was proved of an equal graph need not be proved again.
MatchOutcome MatchBlocks(const std::shared_ptr<torch::jit::Graph>& graph, const torch::jit::Module& self, const std::string& path,
                         ProofMemory* memory = nullptr);

}  // namespace autoep

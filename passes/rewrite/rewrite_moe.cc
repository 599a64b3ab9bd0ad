// SPDX-License-Identifier: Apache-2.0
// Pass rewrite-moe: each planned block computes its experts with EP ops. The router's nodes stay as they were; what lay
// between the routing decision and the weighted sum becomes dead code and goes.
#include <fmt/format.h>
#include <torch/csrc/jit/passes/constant_pooling.h>

#include <algorithm>
#include <map>
#include <set>

#include "passes/model/modules.h"
#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/blocks.h"
#include "passes/rewrite/capacity.h"
#include "passes/rewrite/ep_ops.h"

namespace autoep {
namespace {

constexpr char kName[] = "rewrite-moe";

using torch::jit::Node;
using torch::jit::Value;

int64_t CountNodes(torch::jit::Graph& graph) {
  int64_t count = 0;
  ForEachNode(graph.block(), [&](Node* node) { count += node->kind() != c10::prim::Constant; });
  return count;
}

// Nodes that a match explained and that are still there. Compares addresses of nodes that may be gone: nothing was created
// since they were removed.
Status CheckConsumed(const BlockGraph& block, const MoeLayer& layer, const std::vector<Node*>& consumed) {
  const std::set<const Node*> gone(consumed.begin(), consumed.end());
  const Node* left = nullptr;
  ForEachNode(block.graph->block(), [&](Node* node) {
    if (gone.count(node) > 0) left = node;
  });
  if (left == nullptr) return Status();
  return Status(Code::kBug,
                fmt::format("the MoE block '{}' still holds a node of the old expert compute: {} -> {}", layer.path,
                            left->kind().toQualString(), left->outputs().empty() ? "" : left->outputs()[0]->debugName()));
}

bool AllGone(const torch::jit::Block* block, const std::set<const Node*>& gone) {
  return std::all_of(block->nodes().begin(), block->nodes().end(), [&](const Node* node) {
    const auto blocks = node->blocks();
    return (node->kind() == c10::prim::Constant || gone.contains(node)) &&
           std::all_of(blocks.begin(), blocks.end(), [&](const torch::jit::Block* inner) { return AllGone(inner, gone); });
  });
}

// LibTorch's dead code elimination keeps a loop whose condition is computed, though nothing reads what it makes.
void DestroyLoops(torch::jit::Block* block, const std::set<const Node*>& gone) {
  for (auto it = block->nodes().rbegin(); it != block->nodes().rend();) {
    Node* node = *it;
    ++it;
    if (node->kind() == c10::prim::Loop && gone.contains(node) && !node->hasUses() && AllGone(node->blocks()[0], gone)) {
      node->destroy();
    } else {
      for (torch::jit::Block* inner : node->blocks()) DestroyLoops(inner, gone);
    }
  }
}

class RewriteMoe : public Pass {
 public:
  explicit RewriteMoe(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    std::vector<MoeLayer> layers;
    for (size_t i = 0; i < context_.plan().layers.size(); ++i) {
      if (!context_.Allow(kName)) continue;
      chosen_.push_back(i);
      layers.push_back(context_.plan().layers[i].layer);
    }
    AUTOEP_ASSIGN_OR_RETURN(std::vector<BlockGraph> blocks, PrepareBlocks(model.module, layers));
    Change change;
    for (BlockGraph& block : blocks) AUTOEP_RETURN_IF_ERROR(Rewrite(block, change));
    return change;
  }

 private:
  const PlannedLayer& Planned(size_t position) const { return context_.plan().layers[chosen_[position]]; }

  Status Rewrite(BlockGraph& block, Change& change) {
    const int64_t before = CountNodes(*block.graph);
    for (const MatchedLayer& matched : block.matches) {
      for (size_t i = 0; i < block.objects.size(); ++i) AddAttributes(block.objects[i], Planned(matched.layers[i]));
    }
    Replace(block);
    RemoveDeadCode(block.graph);
    std::set<const Node*> consumed;
    for (const MatchedLayer& matched : block.matches) consumed.insert(matched.match.consumed.begin(), matched.match.consumed.end());
    DestroyLoops(block.graph->block(), consumed);
    RemoveDeadCode(block.graph);
    for (const MatchedLayer& matched : block.matches) {
      AUTOEP_RETURN_IF_ERROR(CheckConsumed(block, matched.match.layer, matched.match.consumed));
    }
    torch::jit::ConstantPooling(block.graph);
    for (const MatchedLayer& matched : block.matches) {
      for (size_t layer : matched.layers) Report(Planned(layer), before, CountNodes(*block.graph), change);
      for (size_t layer : matched.layers) context_.rewritten.insert(chosen_[layer]);
    }
    return Status();
  }

  // What one layer gives may be what the next one reads.
  void Replace(BlockGraph& block) {
    std::map<Value*, Value*> now;
    const auto follow = [&](Value*& value) {
      if (const auto found = now.find(value); found != now.end()) value = found->second;
    };
    for (MatchedLayer& matched : block.matches) {
      BlockMatch match = matched.match;
      LiftCapacity(*block.graph, match, Planned(matched.layers[0]).layer);
      for (Value** value : {&match.tokens, &match.ids, &match.mask, &match.weights}) follow(*value);
      Value* out = InsertEpOps(*block.graph, match, Planned(matched.layers[0]));
      match.out->replaceAllUsesAfterNodeWith(match.insert_after, out);
      now[match.out] = out;
    }
  }

  void Report(const PlannedLayer& planned, int64_t before, int64_t after, Change& change) {
    change.edits.push_back(
        fmt::format("{}: {} nodes of its block became {}, with dispatch, experts and combine", planned.Name(), before, after));
  }

  PassContext& context_;
  std::vector<size_t> chosen_;  // positions in the plan, of the layers to rewrite
};

const RegisterPass kRegistered({kName, "Replace the expert compute of each MoE block by dispatch, experts and combine", 10, true,
                                [](PassContext& context) { return std::make_unique<RewriteMoe>(context); }});

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Pass fuse-gate, only where asked for:
//   %logits = aten::linear(%x, %gate, %gate_bias); %weights, %ids = autoep::route(%logits, %bias, %score_dtype, ..)
// becomes
//   %weights, %ids = autoep::route(%x, %gate, %gate_bias, %bias, %score_dtype, ..)
// whose logits are not rounded to %x's dtype, so that near ties may fall otherwise. Left alone where something else reads the
// logits, where the scores have the logits' own dtype, or where something writes to an operand.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include <memory>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/rewritten.h"

namespace autoep {
namespace {

constexpr char kName[] = "fuse-gate";

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// The product in front of `route`, or null.
Node* FindGate(const Node* route, const torch::jit::AliasDb& aliases) {
  const auto score_dtype = torch::jit::toIValue(route->input(2));
  Node* gate = route->input(0)->node();
  if (!score_dtype || !score_dtype->isInt() || gate->kind() != c10::aten::linear || gate->output()->uses().size() != 1)
    return nullptr;
  for (const Value* operand : gate->inputs()) {
    if (aliases.hasWriters(operand)) return nullptr;
  }
  return gate;
}

void Fuse(Graph& graph, Node* route, Node* gate) {
  const torch::jit::WithInsertPoint here(route);
  std::vector<torch::jit::NamedValue> arguments(gate->inputs().begin(), gate->inputs().end());
  for (size_t i = 1; i < route->inputs().size(); ++i) arguments.emplace_back(route->input(i));
  Value* both = graph.insert(route->kind(), arguments);
  Node* unpacked = graph.insertNode(graph.createTupleUnpack(both));
  both->node()->setSourceRange(route->sourceRange());
  unpacked->setSourceRange(route->sourceRange());
  for (size_t i = 0; i < 2; ++i) route->output(i)->replaceAllUsesWith(unpacked->output(i));
}

class FuseGate : public Pass {
 public:
  explicit FuseGate(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const RewrittenGraph& rewritten : RewrittenGraphs(model.module, context_)) FuseGraph(rewritten, change);
    return change;
  }

 private:
  void FuseGraph(const RewrittenGraph& rewritten, Change& change) {
    static const auto kRoute = c10::Symbol::fromQualString("autoep::route");
    const torch::jit::AliasDb aliases(rewritten.graph);
    std::vector<std::pair<Node*, Node*>> found;
    for (Node* node : rewritten.graph->nodes()) {
      Node* gate = node->kind() == kRoute ? FindGate(node, aliases) : nullptr;
      if (gate != nullptr && context_.Allow(kName)) found.emplace_back(node, gate);
    }
    if (found.empty()) return;
    for (const auto& [route, gate] : found) {
      Fuse(*rewritten.graph, route, gate);
      const std::string& path = rewritten.layers.front()->layer.path;
      change.edits.push_back(fmt::format("{}: route makes its own logits", path.empty() ? "the root" : path));
    }
    torch::jit::LowerSimpleTuples(rewritten.graph->block());
    RemoveDeadCode(rewritten.graph);
    torch::jit::ConstantPooling(rewritten.graph);
  }

  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Put the product that makes a router's logits into the op route; may move near ties", 17,
                                false, [](PassContext& context) { return std::make_unique<FuseGate>(context); }});

}  // namespace
}  // namespace autoep

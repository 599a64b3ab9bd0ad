// SPDX-License-Identifier: Apache-2.0
// Pass fuse-gate:
//   %logits = aten::linear(%x, %gate, %gate_bias); %weights, %ids = autoep::route(%logits, %bias, %score_dtype, ..)
// becomes
//   %weights, %ids = autoep::route(%x, %gate, %gate_bias, %bias, %logits_dtype, %score_dtype, ..)
// which is that product where it is torch's. Where all operands are casts to one dtype, it is %logits_dtype. Left alone where
// something else reads the logits, but for prim::dtype, which is %x's, or writes to an operand.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/rewritten.h"
#include "passes/rewrite/router_choice.h"

namespace autoep {
namespace {

constexpr char kName[] = "fuse-gate";

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// The product in front of a route.
struct Gate {
  Node* route;
  std::vector<Value*> operands;  // x, gate, gate_bias
  std::optional<int64_t> dtype;  // to which all of them are cast first
  std::vector<Node*> dtypes;     // prim::dtype of the logits
};

// Looks through the casts of the operands, where all have one and these are alike.
void StripCasts(Gate& gate) {
  std::vector<Value*> inner = gate.operands;
  std::optional<int64_t> common;
  for (Value*& operand : inner) {
    if (operand->type()->kind() == c10::TypeKind::NoneType) continue;
    std::optional<int64_t> dtype;
    operand = StripCast(operand, &dtype);
    if (!dtype || common.value_or(*dtype) != *dtype) return;
    common = dtype;
  }
  gate.operands = std::move(inner);
  gate.dtype = common;
}

std::optional<Gate> FindGate(Node* route, const torch::jit::AliasDb& aliases) {
  Value* logits = route->input(0);
  Node* linear = logits->node();
  if (!route->schema().overload_name().empty() || linear->kind() != c10::aten::linear) return std::nullopt;
  Gate gate{route, {linear->inputs().begin(), linear->inputs().end()}, std::nullopt, {}};
  for (const torch::jit::Use& use : logits->uses()) {
    if (use.user == route) continue;
    if (use.user->kind() != c10::prim::dtype) return std::nullopt;
    gate.dtypes.push_back(use.user);
  }
  StripCasts(gate);
  for (const Value* operand : gate.operands) {
    if (aliases.hasWriters(operand)) return std::nullopt;
  }
  return gate;
}

void Fuse(Graph& graph, const Gate& gate) {
  for (Node* reader : gate.dtypes) {
    const torch::jit::WithInsertPoint here(reader);
    reader->output()->replaceAllUsesWith(gate.dtype ? graph.insertConstant(*gate.dtype)
                                                    : graph.insert(c10::prim::dtype, {gate.operands.front()}));
  }
  Node* route = gate.route;
  const torch::jit::WithInsertPoint here(route);
  std::vector<torch::jit::NamedValue> arguments(gate.operands.begin(), gate.operands.end());
  arguments.emplace_back(route->input(1));
  arguments.emplace_back(graph.insertConstant(gate.dtype ? at::IValue(*gate.dtype) : at::IValue()));
  for (size_t i = 2; i < route->inputs().size(); ++i) arguments.emplace_back(route->input(i));
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
    std::vector<Gate> found;
    for (Node* node : rewritten.graph->nodes()) {
      const auto gate = node->kind() == kRoute ? FindGate(node, aliases) : std::nullopt;
      if (gate && context_.Allow(kName)) found.push_back(*gate);
    }
    if (found.empty()) return;
    for (const Gate& gate : found) {
      Fuse(*rewritten.graph, gate);
      change.edits.push_back(fmt::format("{}: route makes its own logits", rewritten.layers.front()->Name()));
    }
    torch::jit::LowerSimpleTuples(rewritten.graph->block());
    RemoveDeadCode(rewritten.graph);
    torch::jit::ConstantPooling(rewritten.graph);
  }

  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Put the product that makes a router's logits into the op route", 17, true,
                                [](PassContext& context) { return std::make_unique<FuseGate>(context); }});

}  // namespace
}  // namespace autoep

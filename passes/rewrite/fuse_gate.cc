// SPDX-License-Identifier: Apache-2.0
// Pass fuse-gate:
//   %logits = aten::linear(%x, %gate, %gate_bias); %weights, %ids = autoep::route(%logits, %bias, %score_dtype, ..)
// becomes
//   %weights, %ids = autoep::route(%x, %gate, %gate_bias, %bias, %logits_dtype, %score_dtype, ..)
// which is that product where it is torch's. Where all operands are casts to one dtype, it is %logits_dtype. Left alone where
// something else reads the logits, but for prim::dtype, which is %x's, or writes to an operand.
//
// Pass widen-logits, only where asked for: of those ops' logits, which then are not rounded to %x's dtype, so that near ties may
// fall otherwise, %logits_dtype becomes %score_dtype. Left alone where there is no %score_dtype.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/rewritten.h"
#include "passes/rewrite/router_choice.h"

namespace autoep {
namespace {

constexpr char kFuse[] = "fuse-gate";
constexpr char kWiden[] = "widen-logits";

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

const c10::Symbol& RouteKind() {
  static const auto kRoute = c10::Symbol::fromQualString("autoep::route");
  return kRoute;
}

std::string NameOf(const RewrittenGraph& rewritten) {
  const std::string& path = rewritten.layers.front()->layer.path;
  return path.empty() ? "the root" : path;
}

// The product in front of a route.
struct Gate {
  Node* route;
  std::vector<Value*> operands;  // x, gate, gate_bias
  std::optional<int64_t> dtype;  // to which all of them are cast first
  std::vector<Node*> dtypes;     // prim::dtype of the logits
};

// Looks through the casts, where they are alike.
void StripCasts(Gate& gate) {
  std::vector<Value*> inner;
  for (Value* operand : gate.operands) {
    std::optional<int64_t> dtype;
    inner.push_back(StripCast(operand, &dtype));
    const bool none = operand->type()->kind() == c10::TypeKind::NoneType;
    if (inner.size() == 1) gate.dtype = dtype;
    if (!none && dtype != gate.dtype) {
      gate.dtype.reset();
      return;
    }
  }
  if (gate.dtype) gate.operands = std::move(inner);
}

std::optional<Gate> FindGate(Node* route, const torch::jit::AliasDb& aliases) {
  Value* logits = route->input(0);
  Node* linear = logits->node();
  if (route->inputs().size() != route->schema().arguments().size() || route->schema().overload_name() != "" ||
      linear->kind() != c10::aten::linear) {
    return std::nullopt;
  }
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
    const torch::jit::AliasDb aliases(rewritten.graph);
    std::vector<Gate> found;
    for (Node* node : rewritten.graph->nodes()) {
      const auto gate = node->kind() == RouteKind() ? FindGate(node, aliases) : std::nullopt;
      if (gate && context_.Allow(kFuse)) found.push_back(*gate);
    }
    if (found.empty()) return;
    for (const Gate& gate : found) {
      Fuse(*rewritten.graph, gate);
      change.edits.push_back(fmt::format("{}: route makes its own logits", NameOf(rewritten)));
    }
    torch::jit::LowerSimpleTuples(rewritten.graph->block());
    RemoveDeadCode(rewritten.graph);
    torch::jit::ConstantPooling(rewritten.graph);
  }

  PassContext& context_;
};

class WidenLogits : public Pass {
 public:
  explicit WidenLogits(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const RewrittenGraph& rewritten : RewrittenGraphs(model.module, context_)) {
      for (Node* node : rewritten.graph->nodes()) {
        if (node->kind() != RouteKind() || node->schema().overload_name() != "linear") continue;
        const auto own = torch::jit::toIValue(node->input(4)), scores = torch::jit::toIValue(node->input(5));
        if (!own || !scores || !scores->isInt() || *own == *scores || !context_.Allow(kWiden)) continue;
        node->replaceInput(4, node->input(5));
        change.edits.push_back(fmt::format("{}: route's logits have the scores' dtype", NameOf(rewritten)));
      }
    }
    return change;
  }

 private:
  PassContext& context_;
};

const RegisterPass kFuseGate({kFuse, "Put the product that makes a router's logits into the op route", 17, true,
                              [](PassContext& context) { return std::make_unique<FuseGate>(context); }});
const RegisterPass kWidenLogits({kWiden, "Do not round a router's logits to the model's dtype; may move near ties", 19, false,
                                 [](PassContext& context) { return std::make_unique<WidenLogits>(context); }});

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Pass fuse-router:
//   %weights, %ids = autoep::route(%logits, %bias, ..)
// replaces a router that is provably one of the op's forms. The product that makes the logits stays, and so does every node
// whose value something else reads. Where the proof fails the router is left alone.
#include "passes/rewrite/fuse_router.h"

#include <fmt/format.h>
#include <torch/csrc/jit/passes/constant_pooling.h>
#include <torch/csrc/jit/passes/lower_tuples.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/ep_ops.h"
#include "passes/rewrite/rewritten.h"
#include "plugin/contract/manifest.h"
#include "plugin/contract/schemas.h"

namespace autoep {
namespace {

constexpr char kName[] = "fuse-router";

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// The top-k whose ids `dispatch` is given: as they are, or
//   %ids = aten::where(%outside, %chosen, %topk_ids)
// with those of experts without weights exchanged (routes.cc).
Node* FindTopk(Node* dispatch) {
  Value* ids = dispatch->input(1);
  if (ids->node()->kind() == c10::aten::where && ids->node()->inputs().size() == 3) ids = ids->node()->input(2);
  Node* topk = ids->node();
  return topk->kind() == c10::aten::topk && ids == topk->output(1) ? topk : nullptr;
}

struct FoundRouter {
  RouterForm form;
  std::string layer;  // the attribute that names it
};

class FuseRouter : public Pass {
 public:
  explicit FuseRouter(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const RewrittenGraph& rewritten : RewrittenGraphs(model.module, context_)) {
      FuseGraph(rewritten.graph, rewritten.layers, change);
    }
    return change;
  }

 private:
  void FuseGraph(const std::shared_ptr<Graph>& graph, const std::vector<const PlannedLayer*>& layers, Change& change) {
    const std::vector<FoundRouter> routers = FindRouters(graph, layers, change);
    for (const FoundRouter& router : routers) {
      const torch::jit::WithInsertPoint here(router.form.ids->node());
      InsertRoute(*graph, router.form, graph->insertGetAttr(graph->inputs().at(0), router.layer));
    }
    if (routers.empty()) return;
    torch::jit::LowerSimpleTuples(graph->block());
    RemoveDeadCode(graph);
    torch::jit::ConstantPooling(graph);
  }

  // Of objects that share the graph, the first asks for all.
  std::vector<FoundRouter> FindRouters(const std::shared_ptr<Graph>& graph, const std::vector<const PlannedLayer*>& layers,
                                       Change& change) {
    std::map<std::string, Node*> dispatches = FindDispatches(*graph);
    const torch::jit::AliasDb aliases(graph);
    std::vector<FoundRouter> routers;
    for (const PlannedLayer* planned : layers) {
      const auto dispatch = dispatches.find(planned->Attribute("layer"));
      if (dispatch == dispatches.end()) continue;
      Node* topk = FindTopk(dispatch->second);
      const int64_t choices = planned->layer.num_experts + contract::IdentityExperts(planned->layer.router);
      const auto form = topk ? MatchRouterForm(topk, choices, aliases) : std::nullopt;
      dispatches.erase(dispatch);
      if (!form || !context_.Allow(kName)) continue;
      change.edits.push_back(fmt::format("{}: route computes {}", planned->Name(), form->Summary()));
      routers.push_back({*form, planned->Attribute("layer")});
    }
    return routers;
  }

  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Compute each router that is provably one of route's forms by that op", 15, true,
                                [](PassContext& context) { return std::make_unique<FuseRouter>(context); }});

}  // namespace

void InsertRoute(Graph& graph, const RouterForm& form, Value* layer) {
  Node* topk = form.ids->node();
  const torch::jit::WithInsertPoint here(topk);
  const auto optional = [&](const std::optional<int64_t>& dtype) {
    return graph.insertConstant(dtype ? at::IValue(*dtype) : at::IValue());
  };
  Value* bias = form.bias ? form.bias : graph.insertConstant(at::IValue());
  const std::vector<torch::jit::NamedValue> arguments = {form.logits,
                                                         bias,
                                                         optional(form.score_dtype),
                                                         form.scores,
                                                         form.num_groups,
                                                         form.top_groups,
                                                         form.group_score,
                                                         form.group_fill,
                                                         form.top_k,
                                                         form.sorted,
                                                         form.weigh_choice,
                                                         optional(form.weight_dtype),
                                                         form.renorm,
                                                         form.renorm_min,
                                                         form.scale,
                                                         optional(form.dtype),
                                                         layer,
                                                         contract::kOpAbi};
  Value* both = graph.insert(c10::Symbol::fromQualString("autoep::route"), arguments);
  Node* unpacked = graph.insertNode(graph.createTupleUnpack(both));
  both->node()->setSourceRange(topk->sourceRange());
  unpacked->setSourceRange(topk->sourceRange());
  form.weights->replaceAllUsesWith(unpacked->output(0));
  form.ids->replaceAllUsesWith(unpacked->output(1));
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Pass widen-logits, only where asked for: in
//   %weights, %ids = autoep::route(%x, %gate, %gate_bias, %bias, %logits_dtype, %score_dtype, ..)
// of pass fuse-gate %score_dtype takes the place of another %logits_dtype. The logits are not rounded to %x's dtype then, so that
// near ties may fall otherwise. Left alone where there is no %score_dtype.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/constants.h>

#include <memory>

#include "passes/pipeline.h"
#include "passes/rewrite/rewritten.h"

namespace autoep {
namespace {

constexpr char kName[] = "widen-logits";

using torch::jit::Node;

// Whether it makes its logits in one dtype and its scores in another.
bool CastsLogits(const Node* node) {
  static const auto kRoute = c10::Symbol::fromQualString("autoep::route");
  if (node->kind() != kRoute || node->schema().overload_name() != "linear") return false;
  const auto logits = torch::jit::toIValue(node->input(4)), scores = torch::jit::toIValue(node->input(5));
  return logits && scores && scores->isInt() && *logits != *scores;
}

class WidenLogits : public Pass {
 public:
  explicit WidenLogits(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const RewrittenGraph& rewritten : RewrittenGraphs(model.module, context_)) {
      for (Node* node : rewritten.graph->nodes()) {
        if (!CastsLogits(node) || !context_.Allow(kName)) continue;
        node->replaceInput(4, node->input(5));
        change.edits.push_back(fmt::format("{}: route's logits have the scores' dtype", rewritten.layers.front()->Name()));
      }
    }
    return change;
  }

 private:
  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Do not round a router's logits to the model's dtype; may move near ties", 19, false,
                                [](PassContext& context) { return std::make_unique<WidenLogits>(context); }});

}  // namespace
}  // namespace autoep

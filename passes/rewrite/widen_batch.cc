// SPDX-License-Identifier: Apache-2.0
// Pass widen-batch: a model that a trace bound to a batch of 1 (batch_binding.h) serves every batch. The row that is read is
// the only one there is, so it is the one to read for every sequence:
//   %read = aten::index(%rows, [aten::mul(%b, 0), ..])
// Where the source works the result is the same, bit for bit.
#include <fmt/format.h>

#include <set>

#include "passes/pipeline.h"
#include "passes/rewrite/batch_binding.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr char kName[] = "widen-batch";

using torch::jit::Node;
using torch::jit::Value;

class WidenBatch : public Pass {
 public:
  explicit WidenBatch(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const BatchBinding& binding : FindBatchBindings(model.module)) {
      if (!context_.Allow(kName)) {
        change.limits.push_back(fmt::format("it serves a batch of 1 only: {}", binding.text));
        continue;
      }
      Widen(binding);
      change.edits.push_back("every batch reads the one row at: " + Printable(binding.text));
    }
    return change;
  }

 private:
  static void Widen(const BatchBinding& binding) {
    torch::jit::Graph& graph = *binding.node->owningGraph();
    const torch::jit::WithInsertPoint here(binding.node);
    std::vector<Value*> indices(binding.index->inputs().begin(), binding.index->inputs().end());
    indices[0] = graph.insert(c10::aten::mul, {indices[0], 0});
    indices[0]->node()->setSourceRange(binding.node->sourceRange());
    Node* list = graph.insertNode(graph.create(c10::prim::ListConstruct, indices));
    list->output()->setType(binding.index->output()->type());
    list->setSourceRange(binding.node->sourceRange());
    binding.node->replaceInput(1, list->output());
  }

  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Let a model that was traced with a batch of 1 serve every batch", 5, true,
                                [](PassContext& context) { return std::make_unique<WidenBatch>(context); }});

}  // namespace
}  // namespace autoep

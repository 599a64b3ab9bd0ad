// SPDX-License-Identifier: Apache-2.0
// Pass strip-debug: forgets the author's file names and source lines, which a saved model carries for its error messages.
#include <torch/csrc/jit/frontend/source_range.h>

#include "passes/model/modules.h"
#include "passes/pipeline.h"

namespace autoep {
namespace {

constexpr char kName[] = "strip-debug";

class StripDebug : public Pass {
 public:
  explicit StripDebug(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    if (!context_.Allow(kName)) return Change{};
    for (torch::jit::GraphFunction* function : AllFunctions(ObjectIndex(model.module))) {
      ForEachNode(function->graph()->block(), [](torch::jit::Node* node) {
        node->setSourceRange(torch::jit::SourceRange());
        node->setCallStack({});
      });
    }
    return Change{};
  }

 private:
  PassContext& context_;
};

const RegisterPass kRegistered({kName, "Forget the author's file names and source lines", 90, false,
                                [](PassContext& context) { return std::make_unique<StripDebug>(context); }});

}  // namespace
}  // namespace autoep

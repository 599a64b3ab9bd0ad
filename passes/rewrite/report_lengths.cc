// SPDX-License-Identifier: Apache-2.0
// Pass report-lengths: changes nothing, and says which lengths of a sequence a trace bound the model to (length_binding.h).
#include <fmt/format.h>

#include "passes/pipeline.h"
#include "passes/rewrite/length_binding.h"

namespace autoep {
namespace {

class ReportLengths : public Pass {
 public:
  Result<Change> Run(MoeModel& model) override {
    Change change;
    for (const LengthBinding& binding : FindLengthBindings(model.module)) {
      change.limits.push_back(fmt::format("it serves {}: {}", DescribeLengths(binding), binding.text));
    }
    return change;
  }
};

const RegisterPass kRegistered({"report-lengths", "Say which lengths of a sequence the trace bound the model to", 6, true,
                                [](PassContext&) { return std::make_unique<ReportLengths>(); }});

}  // namespace
}  // namespace autoep

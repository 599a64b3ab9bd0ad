// SPDX-License-Identifier: Apache-2.0
// The list of graph forms: a new form is its file and a line here.
#include "passes/detect/form.h"

namespace autoep {

const std::vector<const ExpertForm*>& ExpertForms() {
  static const std::vector<const ExpertForm*> forms = {&GroupedMmForm(), &BatchedMmForm(), &DenseStackForm(),
                                                        &ExpertLoopForm(), &SplitExpertsForm()};
  return forms;
}

}  // namespace autoep

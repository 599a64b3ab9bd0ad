// SPDX-License-Identifier: Apache-2.0
// Of the form split_experts, the tensors of single experts, where the weights are no stack: freezing takes stacks apart.
#pragma once

#include "passes/detect/form.h"

namespace autoep {

// Whether each expert has a tensor of its own, the first of which is `projection.weight`.
bool HasTensorPerExpert(const Projection& projection);
Weight TensorOfExpert(const Projection& projection, int64_t e, const WeightFinder& weights);

}  // namespace autoep

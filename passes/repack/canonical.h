// SPDX-License-Identifier: Apache-2.0
// One expert at a time, from the tensors of the source to the canonical layout (contract/manifest.h gives the mapping).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "passes/detect/moe_layer.h"
#include "plugin/io/status.h"

namespace autoep {

// The canonical tensor of one expert, [R, C], or [R] for a bias: contiguous; a view of the source where that lies like this
// already, else fresh memory. kBug if the parts do not fit their sources.
Result<at::Tensor> CanonicalExpert(const ExpertTensor& tensor, int64_t expert);

}  // namespace autoep

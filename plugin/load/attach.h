// SPDX-License-Identifier: Apache-2.0
// Putting a shard and a group name into a loaded model.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <map>
#include <string>

#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"

namespace autoep {

// Replaces the placeholder parameters ([0, ...], of the same dtype) by `tensors`, moved to `device`, with the manifest's
// requires_grad. kPlugin: the model has no such parameter, or one of another dtype.
Status AttachShard(torch::jit::Module& model, const contract::Manifest& manifest, const std::map<std::string, at::Tensor>& tensors,
                   at::Device device);

// Sets the group attribute of every EP block.
Status SetGroup(torch::jit::Module& model, const contract::Manifest& manifest, const std::string& group);

// Every floating-point parameter requires a gradient.
void MakeTrainable(torch::jit::Module& model);

}  // namespace autoep

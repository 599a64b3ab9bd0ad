// SPDX-License-Identifier: Apache-2.0
// From the group name that stands in a model to the communicator of this thread or process.
#pragma once

#include <cstdint>
#include <string>

#include "plugin/comm/communicator.h"
#include "plugin/contract/export.h"
#include "plugin/io/status.h"

namespace autoep::comm {

// The group `name`, whose size must be `ep_size`. Looked for in this order:
//   1. the local group that this thread is bound to (local.h), if it has that name or `name` is "";
//   2. the c10d process group registered under `name`;
//   3. for "", the default process group of torch.distributed.
// For tensors on `device`; where that is a GPU, collective the first time.
// kPlugin: no such group, or one of another size; the sentence says what to do.
AUTOEP_API Result<CommunicatorPtr> ResolveCommunicator(const std::string& name, int64_t ep_size,
                                                       const at::Device& device = at::kCPU);

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// The communicator over a c10d process group: Gloo for CPU tensors, NCCL for CUDA tensors.
#pragma once

#include <string>

#include "plugin/comm/communicator.h"

namespace autoep::comm {

// The process group registered with c10d under exactly `name`, or null.
CommunicatorPtr FindProcessGroup(const std::string& name);

}  // namespace autoep::comm

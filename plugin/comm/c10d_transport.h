// SPDX-License-Identifier: Apache-2.0
// The communicator over a c10d process group: Gloo for CPU tensors, NCCL for CUDA tensors.
#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "plugin/comm/communicator.h"

namespace autoep::comm {

// The process group registered with c10d under exactly `name`, or null.
CommunicatorPtr FindProcessGroup(const std::string& name);

// Of the group's backend for such a device.
std::chrono::milliseconds TimeoutOf(c10d::ProcessGroup& group, c10::DeviceType device);

}  // namespace autoep::comm

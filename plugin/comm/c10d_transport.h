// SPDX-License-Identifier: Apache-2.0
// Communicators over a c10d process group: Gloo for CPU tensors, NCCL for CUDA tensors.
#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "plugin/comm/communicator.h"

namespace autoep::comm {

// The process group registered with c10d under exactly `name`, or null.
c10::intrusive_ptr<c10d::ProcessGroup> FindProcessGroup(const std::string& name);

CommunicatorPtr MakeC10dCommunicator(c10::intrusive_ptr<c10d::ProcessGroup> group);

// By the group itself: row i of counts [size, m] goes to rank i.
at::Tensor GroupCounts(c10d::ProcessGroup& group, const at::Tensor& counts);

// Of the group's backend for such a device.
std::chrono::milliseconds TimeoutOf(c10d::ProcessGroup& group, c10::DeviceType device);

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// GPUs that reach each other's memory. Rows lie in an outbox that the others can read; each rank fetches what is its own with the
// copy engines, which leave the multiprocessors to the products. Before that the ranks meet, which also carries the counts.
#pragma once

#include <chrono>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "plugin/comm/communicator.h"

namespace autoep::comm {

// The group's communicator for such a device, made once; null where its ranks have no such memory, and without CUDA. Collective the
// first time.
CommunicatorPtr PeersOf(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const at::Device& device);

using MakePeers = CommunicatorPtr (*)(c10d::ProcessGroup& group, const at::Device& device, std::chrono::milliseconds timeout);
// Called by the CUDA part, where it is linked in.
void RegisterPeers(MakePeers make);

}  // namespace autoep::comm

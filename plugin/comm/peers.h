// SPDX-License-Identifier: Apache-2.0
// GPUs that reach each other's memory. Rows lie in an outbox that the others can read; each rank fetches what is its own with the
// copy engines, which leave the multiprocessors to the products. Before that the ranks meet, which also carries the counts.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <memory>
#include <optional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "plugin/comm/communicator.h"

namespace autoep::comm {

class Peers {
 public:
  virtual ~Peers() = default;

  // As AllToAllCounts, or undefined where the counts are too many.
  virtual at::Tensor Meet(const at::Tensor& counts) = 0;
  // As the Communicator's. Each exchange has an outbox of its own until the next but one.
  virtual Outbox MakeOutbox(const Communicator::Columns& parts, int64_t room, const at::Tensor& like) = 0;
  virtual Outbox MakeOutbox(const Communicator::Columns& parts, const Traffic& traffic, const at::Tensor& like) = 0;
  virtual std::vector<at::Tensor> Exchange(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed& boxed) = 0;
  virtual std::unique_ptr<Arriving> Start(const std::vector<at::Tensor>& rows, const Traffic& traffic) = 0;
  virtual std::optional<at::Tensor> RoundTrip(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed& boxed,
                                              const Worker& worker) = 0;
};

// The group's peers on such a device, made once; null where its ranks have no such memory, and without CUDA. Collective the first
// time.
Peers* PeersOf(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const at::Device& device);

using MakePeers = std::unique_ptr<Peers> (*)(c10d::ProcessGroup& group, const at::Device& device,
                                             std::chrono::milliseconds timeout);
// Called by the CUDA part, where it is linked in.
void RegisterPeers(MakePeers make);

}  // namespace autoep::comm

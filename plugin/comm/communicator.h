// SPDX-License-Identifier: Apache-2.0
// The one interface through which ops talk to the other ranks of an EP group. Transports: c10d (c10d_transport.h) and local
// (local.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

namespace autoep::comm {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  // How long an exchange of tensors on such a device may take.
  virtual std::chrono::milliseconds timeout(c10::DeviceType device) const = 0;

  // rows [sum(send), C], any dtype: send[r] rows for each other rank r, in the order of ranks, then send[rank()] for this one,
  // which do not travel. Returns [sum(receive), C] laid out likewise by source; same dtype and device.
  // Both lists have size() entries, which may be 0. Collective: every rank calls it, with lists that agree.
  // Throws c10::Error where a peer is gone, failed, or took longer than the transport's timeout.
  virtual at::Tensor AllToAllRows(const at::Tensor& rows, std::vector<int64_t> send, std::vector<int64_t> receive) = 0;

  // As AllToAllRows of each, in as few messages as the transport can make of them.
  virtual std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const std::vector<int64_t>& send,
                                               const std::vector<int64_t>& receive) {
    std::vector<at::Tensor> received;
    for (const at::Tensor& one : rows) received.push_back(AllToAllRows(one, send, receive));
    return received;
  }

  // counts [size(), m]: row i goes to rank i. Returns [size(), m]: row i came from rank i. Else as AllToAllRows.
  virtual at::Tensor AllToAllCounts(const at::Tensor& counts) = 0;
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

}  // namespace autoep::comm

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

  // rows [sum(send), C], any dtype: the first send[0] rows go to rank 0, the next send[1] to rank 1, and so on. Returns
  // [sum(receive), C]: receive[0] rows from rank 0, then receive[1] from rank 1, and so on; same dtype and device.
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

  // counts [size(), m]: row i goes to rank i. Returns [size(), m]: row i came from rank i. As AllToAllRows.
  at::Tensor AllToAllCounts(const at::Tensor& counts) {
    const std::vector<int64_t> one(size(), 1);
    return AllToAllRows(counts, one, one);
  }
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// c10d's own all-to-all, on bytes, so that every dtype takes the same path in every backend.
#include "plugin/comm/c10d_transport.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <numeric>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

namespace autoep::comm {
namespace {

class C10dCommunicator : public Communicator {
 public:
  explicit C10dCommunicator(c10::intrusive_ptr<c10d::ProcessGroup> group) : group_(std::move(group)) {}

  int64_t rank() const override { return group_->getRank(); }
  int64_t size() const override { return group_->getSize(); }

  std::chrono::milliseconds timeout(c10::DeviceType device) const override {
    try {
      return group_->getBackend(device)->getBackendOptions()->timeout;
    } catch (const c10::Error&) {  // a backend that does not say
      return kBackendDefaultTimeout;
    }
  }

  at::Tensor AllToAllRows(const at::Tensor& rows, std::vector<int64_t> send, std::vector<int64_t> receive) override {
    at::Tensor received;
    Start(rows, send, receive, received)->wait();
    return received;
  }

  std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const std::vector<int64_t>& send,
                                       const std::vector<int64_t>& receive) override {
    const c10::DeviceType device = rows.at(0).device().type();
    if (device != at::kCUDA) return Communicator::AllToAllEach(rows, send, receive);  // Gloo cannot
    std::vector<at::Tensor> sent;
    for (const at::Tensor& one : rows) sent.push_back(one.contiguous());
    std::vector<at::Tensor> received(rows.size());
    group_->startCoalescing(device);
    for (size_t i = 0; i < rows.size(); ++i) Start(sent[i], send, receive, received[i]);
    group_->endCoalescing(device)->wait();
    return received;
  }

 private:
  c10::intrusive_ptr<c10d::Work> Start(const at::Tensor& rows, std::vector<int64_t> send, std::vector<int64_t> receive,
                                       at::Tensor& received) {
    const int64_t count = std::accumulate(receive.begin(), receive.end(), int64_t{0});
    received = at::empty({count, rows.size(1)}, rows.options());
    at::Tensor to = received.view(at::kByte);
    at::Tensor from = rows.contiguous().view(at::kByte);
    return group_->alltoall_base(to, from, receive, send);
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

}  // namespace

CommunicatorPtr FindProcessGroup(const std::string& name) {
  try {
    return std::make_shared<C10dCommunicator>(c10d::resolve_process_group(name));
  } catch (const c10::Error&) {  // the registry has no way to ask
    return nullptr;
  }
}

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// c10d's own all-to-all, on bytes, so that every dtype takes the same path in every backend.
#include "plugin/comm/c10d_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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
    for (const at::Tensor& one : rows) sent.push_back(one.contiguous());  // alive until the end
    std::vector<at::Tensor> received(rows.size());
    group_->startCoalescing(device);
    for (size_t i = 0; i < rows.size(); ++i) Start(sent[i], send, receive, received[i]);
    group_->endCoalescing(device)->wait();
    return received;
  }

  at::Tensor AllToAllCounts(const at::Tensor& counts) override {
    const at::Tensor sent = counts.contiguous();
    at::Tensor received = at::empty_like(sent);
    at::Tensor to = received.view(at::kByte);
    at::Tensor from = sent.view(at::kByte);
    std::vector<int64_t> equal;
    group_->alltoall_base(to, from, equal, equal)->wait();
    return received;
  }

 private:
  // This rank's own rows are copied by it; the others', before them, are the group's.
  c10::intrusive_ptr<c10d::Work> Start(const at::Tensor& rows, std::vector<int64_t> send, std::vector<int64_t> receive,
                                       at::Tensor& received) {
    const int64_t own = std::exchange(send[rank()], 0);
    receive[rank()] = 0;
    const int64_t away = std::accumulate(send.begin(), send.end(), int64_t{0});
    const int64_t come = std::accumulate(receive.begin(), receive.end(), int64_t{0});
    const at::Tensor sent = rows.contiguous();
    received = at::empty({come + own, rows.size(1)}, rows.options());
    at::Tensor to = received.narrow(0, 0, come).view(at::kByte);
    at::Tensor from = sent.narrow(0, 0, away).view(at::kByte);
    c10::intrusive_ptr<c10d::Work> work = group_->alltoall_base(to, from, receive, send);
    received.narrow(0, come, own).copy_(sent.narrow(0, away, own));
    return work;
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

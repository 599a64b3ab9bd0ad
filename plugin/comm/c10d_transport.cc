// SPDX-License-Identifier: Apache-2.0
// c10d's own all-to-all, on bytes, so that every dtype takes the same path in every backend.
#include "plugin/comm/c10d_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

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

  std::chrono::milliseconds timeout(c10::DeviceType device) const override { return TimeoutOf(*group_, device); }

  at::Tensor AllToAllCounts(const Message& message) override { return GroupCounts(*group_, message.Whole()); }

  std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed&) override {
    const at::Device device = rows.at(0).device();
    std::vector<at::Tensor> sent, received;
    for (const at::Tensor& one : rows) sent.push_back(one.contiguous());  // alive until the end
    received.resize(rows.size());
    const bool coalesced = device.is_cuda() && rows.size() > 1;  // Gloo cannot
    if (coalesced) group_->startCoalescing(device.type());
    for (size_t i = 0; i < rows.size(); ++i) {
      const c10::intrusive_ptr<c10d::Work> work = Start(sent[i], traffic, received[i]);
      if (!coalesced) work->wait();
    }
    if (coalesced) group_->endCoalescing(device.type())->wait();
    return received;
  }

 private:
  // This rank's own rows are copied by it; the others', before them, are the group's.
  c10::intrusive_ptr<c10d::Work> Start(const at::Tensor& sent, const Traffic& traffic, at::Tensor& received) {
    const int64_t own = traffic.Rows(rank(), rank()), away = traffic.Away(rank()), coming = traffic.Coming(rank());
    received = at::empty({coming + own, sent.size(1)}, sent.options());
    at::Tensor to = received.narrow(0, 0, coming).view(at::kByte);
    at::Tensor from = sent.narrow(0, 0, away).view(at::kByte);
    std::vector<int64_t> receive = traffic.ReceiveSizes(rank()), send = traffic.SendSizes(rank());
    c10::intrusive_ptr<c10d::Work> work = group_->alltoall_base(to, from, receive, send);
    received.narrow(0, coming, own).copy_(sent.narrow(0, away, own));
    return work;
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

}  // namespace

std::chrono::milliseconds TimeoutOf(c10d::ProcessGroup& group, c10::DeviceType device) {
  try {
    return group.getBackend(device)->getBackendOptions()->timeout;
  } catch (const c10::Error&) {  // a backend that does not say
    return kBackendDefaultTimeout;
  }
}

at::Tensor GroupCounts(c10d::ProcessGroup& group, const at::Tensor& counts) {
  const at::Tensor sent = counts.contiguous();
  at::Tensor received = at::empty_like(sent);
  at::Tensor to = received.view(at::kByte);
  at::Tensor from = sent.view(at::kByte);
  std::vector<int64_t> equal;
  group.alltoall_base(to, from, equal, equal)->wait();
  return received;
}

c10::intrusive_ptr<c10d::ProcessGroup> FindProcessGroup(const std::string& name) {
  try {
    return c10d::resolve_process_group(name);
  } catch (const c10::Error&) {  // the registry has no way to ask
    return {};
  }
}

CommunicatorPtr MakeC10dCommunicator(c10::intrusive_ptr<c10d::ProcessGroup> group) {
  return std::make_shared<C10dCommunicator>(std::move(group));
}

}  // namespace autoep::comm

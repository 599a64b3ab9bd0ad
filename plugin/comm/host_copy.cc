// SPDX-License-Identifier: Apache-2.0
#include "plugin/comm/host_copy.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace autoep::comm {

HostCopy::HostCopy(const at::Tensor& values) : host_(values) {
  if (values.is_cpu()) return;
  host_ = at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(true));
  host_.copy_(values, /*non_blocking=*/true);
  copied_.emplace(values.device().type());
  copied_->record(c10::impl::VirtualGuardImpl(values.device().type()).getStream(values.device()));
}

std::optional<at::Tensor> HostCopy::Wait(std::chrono::milliseconds timeout) const {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (copied_ && !copied_->query()) {
    if (std::chrono::steady_clock::now() >= deadline) return std::nullopt;
  }
  return host_;
}

}  // namespace autoep::comm

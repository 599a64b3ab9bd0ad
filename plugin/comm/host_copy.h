// SPDX-License-Identifier: Apache-2.0
// Values on their way from a device to the host, which goes on until it needs them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <chrono>
#include <optional>

namespace autoep::comm {

class HostCopy {
 public:
  explicit HostCopy(const at::Tensor& values);

  // The values on the CPU; nothing where they are not there in time. Waits for nothing that was launched after them.
  std::optional<at::Tensor> Wait(std::chrono::milliseconds timeout) const;

 private:
  at::Tensor host_;
  std::optional<c10::Event> copied_;
};

}  // namespace autoep::comm

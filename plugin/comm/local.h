// SPDX-License-Identifier: Apache-2.0
// N virtual ranks in one process: one thread a rank, exchanging through memory. For verify, tests, and measuring kernels.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "plugin/comm/communicator.h"
#include "plugin/contract/export.h"
#include "plugin/io/status.h"

namespace autoep::comm {

class LocalExchange;

class AUTOEP_API LocalGroup {
 public:
  // `timeout`: how long a rank waits for the others in one exchange.
  LocalGroup(std::string name, int64_t size, std::chrono::milliseconds timeout = std::chrono::minutes(5));
  ~LocalGroup();

  // Calls body(rank) for every rank, each on a thread of its own that is bound to its rank, with the caller's grad mode and
  // other thread-local state of ATen. On such a thread the group is found under its name and under "". Returns when all have
  // returned. A body that throws fails the exchanges of the others, as does one that returns while others wait for it.
  // kPlugin: the first failure, naming the rank.
  //
  // A backward pass must run on the body's own thread, so on CPU tensors: autograd gives a GPU's work to another thread.
  Status Run(const std::function<void(int64_t rank)>& body);

 private:
  std::shared_ptr<LocalExchange> exchange_;
};

// The rank that this thread is bound to, if its group's name is `name` or `name` is ""; else null.
CommunicatorPtr BoundLocalRank(const std::string& name);

}  // namespace autoep::comm

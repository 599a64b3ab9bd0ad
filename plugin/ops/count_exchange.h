// SPDX-License-Identifier: Apache-2.0
// What ranks tell each other before rows travel: how many come, and that all are in the same call.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "plugin/comm/communicator.h"
#include "plugin/comm/host_copy.h"

namespace autoep::ops {

struct Counts {
  at::Tensor counts;    // [E], as dispatch returns it: on the CPU
  at::Tensor received;  // [N, S + N], likewise
  comm::Boxed boxed;    // of what was packed before
};

// Tells every rank how much comes to it. Every rank also says which call it is in (`signature`); if they differ, or if a rank
// reports a `failure`, every rank throws, each with its own sentence.
class CountExchange {
 public:
  // counts [E]: this rank's pairs for each expert; by_slot [E]: for each slot number; tokens [N]: its tokens to each rank; room: of
  // its outbox. Starts the exchange and does not wait for it, so that what does not need the counts can be launched.
  CountExchange(comm::Communicator& communicator, const at::Tensor& counts, const at::Tensor& by_slot, const at::Tensor& tokens,
                int64_t room, const std::string& signature, bool failed);

  // Waits for the counts, and for nothing that was launched since. Throws where the others do not come within the group's timeout.
  Counts Finish(const std::optional<std::string>& failure, const std::string& layer);

 private:
  const int64_t rank_, ranks_, slots_, experts_;
  const std::chrono::milliseconds timeout_;
  const std::string signature_;
  const int64_t mark_;
  at::Tensor heard_;  // [N, S + N + 2]: from each rank; its pairs for each slot here, its tokens to each rank, its room, its mark
  std::optional<comm::HostCopy> host_;  // heard_, counts
};

}  // namespace autoep::ops

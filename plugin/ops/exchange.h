// SPDX-License-Identifier: Apache-2.0
// The rows' way between a rank's send buffer and the slots of the ranks that hold the experts. With one rank both are the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plugin/comm/communicator.h"

namespace autoep::ops {

// placement is [E, 1, 2] int64 for this number of ranks; on the CPU, also that its entries are a placement.
void CheckPlacement(const at::Tensor& placement, int64_t ep_size, const std::string& layer);

// Slot number (rank * S + slot) of each expert: [E] int64 on `device`. Checks the placement.
at::Tensor SlotNumbers(const at::Tensor& placement, int64_t ep_size, const at::Device& device, const std::string& layer);

// Throws with a sentence that names the layer.
comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const std::string& layer);

// sent [N, S]: this rank's pairs for each slot. Returns the rows that each rank sends to each of this rank's slots, [N, S] on
// the CPU. Every rank also says which call it is in (`signature`); if they differ, or if a rank reports a `failure`, every
// rank throws, each with its own sentence.
at::Tensor ExchangeCounts(comm::Communicator& communicator, const at::Tensor& sent, const std::string& signature,
                          const std::optional<std::string>& failure, const std::string& layer);

class Exchange {
 public:
  // One rank: nothing to do. Else: counts [E] and received [N, S] as dispatch returned them.
  Exchange(const at::Tensor& counts, const at::Tensor& received, const at::Tensor& placement, int64_t ep_size,
           const std::string& group, const std::string& layer);
  // For dispatch, which has the communicator already. sent [N, S] on the CPU.
  Exchange(comm::CommunicatorPtr communicator, const at::Tensor& sent, const at::Tensor& received);

  // From the send buffer [P, H] to rows grouped by this rank's slots [R, H].
  at::Tensor Deliver(const at::Tensor& send) const;
  // The way back, [R, H] to [P, H].
  at::Tensor Return(const at::Tensor& rows) const;

 private:
  void SetSplits(const at::Tensor& sent, const at::Tensor& received);

  comm::CommunicatorPtr communicator_;  // null: one rank
  std::vector<int64_t> send_;           // rows to each rank
  std::vector<int64_t> receive_;        // rows from each rank
  std::vector<int64_t> blocks_;         // received, as one list: rank by rank, slot by slot
};

}  // namespace autoep::ops

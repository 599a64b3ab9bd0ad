// SPDX-License-Identifier: Apache-2.0
// The counts, each rank's mark beside them, and the cross-check.
#include "plugin/ops/count_exchange.h"

#include <ATen/ops/cat.h>

#include <string_view>

#include "plugin/ops/checks.h"

namespace autoep::ops {
namespace {

constexpr int64_t kFailed = -1;  // in place of a signature

// FNV-1a, without its sign bit.
int64_t Hash(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3;
  return static_cast<int64_t>(hash >> 1);
}

}  // namespace

CountExchange::CountExchange(comm::Communicator& communicator, const at::Tensor& counts, const at::Tensor& by_slot,
                             const at::Tensor& tokens, int64_t room, const std::string& signature, bool failed)
    : rank_(communicator.rank()),
      ranks_(communicator.size()),
      slots_(by_slot.size(0) / ranks_),
      experts_(by_slot.size(0)),
      timeout_(communicator.timeout(tokens.device().type())),
      signature_(signature),
      mark_(failed ? kFailed : Hash(signature)) {
  heard_ = communicator.AllToAllCounts({by_slot.view({ranks_, slots_}), tokens, {room, mark_}});
  host_.emplace(at::cat({heard_.view(-1), counts}));
}

Counts CountExchange::Finish(const std::optional<std::string>& failure, const std::string& layer) {
  const std::optional<at::Tensor> all = host_->Wait(timeout_);
  AUTOEP_CHECK(all, layer, "rank ", rank_, " of the group waited ", timeout_.count() / 1000.0,
               " s for the others: one of them is gone, or is not in this call");
  AUTOEP_CHECK(!failure, layer, *failure);
  const at::Tensor answer = all->narrow(0, 0, heard_.numel()).view(heard_.sizes());
  const auto entries = answer.accessor<int64_t, 2>();
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const int64_t mark = entries[rank][slots_ + ranks_ + 1];
    AUTOEP_CHECK(mark != comm::kAbsent, layer, "rank ", rank_, " of the group waited ", timeout_.count() / 1000.0, " s for rank ",
                 rank, ": it is gone, or is not in this call");
    AUTOEP_CHECK(mark != kFailed, layer, "rank ", rank, " of the group failed here; its own message says why");
    AUTOEP_CHECK(mark == mark_, layer, "rank ", rank, " of the group is in another call than rank ", rank_, " (", signature_,
                 "): every rank must run the same converted model, with inputs of one dtype");
  }
  Counts found{all->narrow(0, heard_.numel(), experts_).clone(), answer.narrow(1, 0, slots_ + ranks_).contiguous(), {{}, true}};
  for (int64_t rank = 0; rank < ranks_; ++rank) found.boxed.rooms.push_back(entries[rank][slots_ + ranks_]);
  return found;
}

}  // namespace autoep::ops

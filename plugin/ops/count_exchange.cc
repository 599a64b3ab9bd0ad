// SPDX-License-Identifier: Apache-2.0
// The counts, each rank's mark beside them, and the cross-check.
#include "plugin/ops/count_exchange.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/impl/VirtualGuardImpl.h>

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
  const auto to_all = [&](const at::Tensor& row) { return row.unsqueeze(0).expand({ranks_, row.size(0)}); };
  const at::Tensor room_of = at::full({ranks_, 1}, room, tokens.options());
  const at::Tensor mark = at::full({ranks_, 1}, mark_, tokens.options());
  heard_ = communicator.AllToAllCounts(at::cat({by_slot.view({ranks_, slots_}), to_all(tokens), room_of, mark}, 1));
  const at::Tensor all = at::cat({heard_.view(-1), counts});
  if (all.is_cpu()) {
    host_ = all;
    return;
  }
  host_ = at::empty(all.sizes(), all.options().device(at::kCPU).pinned_memory(true));
  host_.copy_(all, /*non_blocking=*/true);
  copied_.emplace(all.device().type());
  copied_->record(c10::impl::VirtualGuardImpl(all.device().type()).getStream(all.device()));
}

void CountExchange::Wait(const std::string& layer) const {
  if (!copied_) return;
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  while (!copied_->query()) {
    AUTOEP_CHECK(std::chrono::steady_clock::now() < deadline, layer, "rank ", rank_, " of the group waited ",
                 timeout_.count() / 1000.0, " s for the others: one of them is gone, or is not in this call");
  }
}

Counts CountExchange::Finish(const std::optional<std::string>& failure, const std::string& layer) {
  Wait(layer);
  AUTOEP_CHECK(!failure, layer, *failure);
  const at::Tensor answer = host_.narrow(0, 0, heard_.numel()).view(heard_.sizes());
  const auto entries = answer.accessor<int64_t, 2>();
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const int64_t mark = entries[rank][slots_ + ranks_ + 1];
    AUTOEP_CHECK(mark != comm::kAbsent, layer, "rank ", rank_, " of the group waited ", timeout_.count() / 1000.0, " s for rank ",
                 rank, ": it is gone, or is not in this call");
    AUTOEP_CHECK(mark != kFailed, layer, "rank ", rank, " of the group failed here; its own message says why");
    AUTOEP_CHECK(mark == mark_, layer, "rank ", rank, " of the group is in another call than rank ", rank_, " (", signature_,
                 "): every rank must run the same converted model, with inputs of one dtype");
  }
  Counts found{host_.narrow(0, heard_.numel(), experts_).clone(), answer.narrow(1, 0, slots_ + ranks_).contiguous(), {{}, true}};
  for (int64_t rank = 0; rank < ranks_; ++rank) found.boxed.rooms.push_back(entries[rank][slots_ + ranks_]);
  return found;
}

}  // namespace autoep::ops

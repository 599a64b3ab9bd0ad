// SPDX-License-Identifier: Apache-2.0
// The send plan, the count exchange with its cross-check, and the rows' way there and back.
#include "plugin/ops/exchange.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/bucketize.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <string_view>
#include <tuple>
#include <utility>

#include "plugin/comm/resolve.h"
#include "plugin/contract/placement.h"
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

void CheckTable(const at::Tensor& placement, int64_t ep_size, const std::string& layer) {
  contract::Placement table{.ep_size = ep_size, .experts = {}};
  const auto entries = placement.accessor<int64_t, 3>();
  for (int64_t expert = 0; expert < placement.size(0); ++expert)
    table.experts.push_back({entries[expert][0][0], entries[expert][0][1]});
  const Status status = contract::CheckPlacement(table);
  AUTOEP_CHECK(status.ok(), layer, status.message());
}

// A placement [count, 1, 2] on one rank: first, first + 1, ... in slots 0 to held - 1, and every other number in slot `held`.
// Made once for each device and kept for good.
at::Tensor RangeTable(int64_t count, int64_t first, int64_t held, const at::Device& device) {
  static std::mutex mutex;
  static auto& tables = *new std::map<std::tuple<int64_t, int64_t, int64_t, std::string>, at::Tensor>();
  const std::lock_guard lock(mutex);
  at::Tensor& table = tables[{count, first, held, device.str()}];
  if (!table.defined()) {
    const at::Tensor slots = at::arange(-first, count - first, at::kLong);
    const at::Tensor kept = at::where(slots.lt(0).logical_or(slots.ge(held)), held, slots);
    table = at::stack({at::zeros_like(kept), kept}, 1).unsqueeze(1).to(device);
  }
  return table;
}

std::vector<int64_t> ListOf(const at::Tensor& column) {
  std::vector<int64_t> list;
  for (int64_t i = 0; i < column.size(0); ++i) list.push_back(column[i].item<int64_t>());
  return list;
}

}  // namespace

void CheckPlacement(const at::Tensor& placement, int64_t ep_size, const std::string& layer) {
  CheckInt64(placement, 3, "placement", layer);
  AUTOEP_CHECK(placement.size(1) == 1 && placement.size(2) == 2, layer, "placement is ", placement.sizes(),
               ", and [experts, 1, 2] is expected");
  AUTOEP_CHECK(ep_size >= 1 && placement.size(0) >= 1 && placement.size(0) % ep_size == 0, layer, "placement has ",
               placement.size(0), " experts, which ", ep_size, " ranks cannot hold in equal numbers");
  if (placement.is_cpu()) CheckTable(placement, ep_size, layer);
}

comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const std::string& layer) {
  Result<comm::CommunicatorPtr> found = comm::ResolveCommunicator(group, ep_size);
  AUTOEP_CHECK(found.ok(), layer, found.status().message());
  return std::move(found).value();
}

SendPlan PlanSend(const Kernels& kernels, const PairOrder& pairs, int64_t ep_size, const std::string& layer) {
  const at::Tensor slots = at::bucketize(pairs.order, pairs.ends.to(at::kLong), /*out_int32=*/false, /*right=*/true);
  const at::Tensor ranks = slots.div(pairs.ends.size(0) / ep_size, "floor");
  // An earlier choice goes to the same rank.
  const at::Tensor again = ranks.unsqueeze(2).eq(ranks.unsqueeze(1)).tril(-1).any(2);
  const at::Tensor table = RangeTable(ep_size + 1, 0, ep_size, ranks.device());
  const PairOrder tokens = kernels.order_pairs(ranks.masked_fill(again, ep_size), table, 1, layer);
  return {at::cat({tokens.order, slots}, 1), tokens.by_slot.narrow(0, 0, ep_size)};
}

CountExchange::CountExchange(comm::Communicator& communicator, const at::Tensor& counts, const at::Tensor& by_slot,
                             const at::Tensor& tokens, const std::string& signature, bool failed)
    : rank_(communicator.rank()),
      ranks_(communicator.size()),
      slots_(by_slot.size(0) / ranks_),
      experts_(by_slot.size(0)),
      signature_(signature),
      mark_(failed ? kFailed : Hash(signature)) {
  const at::Tensor mark = at::full({ranks_, 1}, mark_, tokens.options());
  heard_ = communicator.AllToAllCounts(at::cat({by_slot.view({ranks_, slots_}), tokens.unsqueeze(1), mark}, 1));
  const at::Tensor all = at::cat({heard_.view(-1), tokens, counts});
  if (all.is_cpu()) {
    host_ = all;
    return;
  }
  host_ = at::empty(all.sizes(), all.options().device(at::kCPU).pinned_memory(true));
  host_.copy_(all, /*non_blocking=*/true);
  copied_.emplace(all.device().type());
  copied_->record(c10::impl::VirtualGuardImpl(all.device().type()).getStream(all.device()));
}

Counts CountExchange::Finish(const std::optional<std::string>& failure, const std::string& layer) {
  if (copied_) copied_->synchronize();
  AUTOEP_CHECK(!failure, layer, *failure);
  const at::Tensor answer = host_.narrow(0, 0, heard_.numel()).view(heard_.sizes());
  const auto entries = answer.accessor<int64_t, 2>();
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const int64_t mark = entries[rank][slots_ + 1];
    AUTOEP_CHECK(mark != kFailed, layer, "rank ", rank, " of the group failed here; its own message says why");
    AUTOEP_CHECK(mark == mark_, layer, "rank ", rank, " of the group is in another call than rank ", rank_, " (", signature_,
                 "): every rank must run the same converted model, with inputs of one dtype");
  }
  const at::Tensor sent = host_.narrow(0, heard_.numel(), ranks_).unsqueeze(1);
  return {host_.narrow(0, heard_.numel() + ranks_, experts_).clone(),
          at::cat({answer.narrow(1, 0, slots_), sent, answer.narrow(1, slots_, 1)}, 1),
          at::cumsum(heard_.narrow(1, 0, slots_).sum(0), 0, at::kInt)};
}

at::Tensor Numbers(const at::Tensor& order, const std::optional<at::Tensor>& factors) {
  const int64_t choices = order.size(1) / 2;
  const at::ScalarType type = factors ? AccumulateType(factors->scalar_type()) : at::kFloat;
  const at::Tensor slots = order.narrow(1, choices, choices).to(type);  // far below where fp32 skips integers
  return factors ? at::cat({slots, factors->to(type)}, 1) : slots;
}

at::Tensor Pack(const at::Tensor& values, const at::Tensor& order, int64_t ranks, at::ScalarType type) {
  const int64_t choices = order.size(1) / 2;
  const at::Tensor first = order.narrow(1, 0, choices);
  return KernelsFor(values.device())
      .spread_rows(values, std::nullopt, first.contiguous(), order.size(0) * std::min(choices, ranks), type);
}

Exchange::Exchange(comm::CommunicatorPtr communicator, const at::Tensor& order, const at::Tensor& received,
                   const std::string& layer)
    : communicator_(std::move(communicator)), order_(order), layer_(layer) {
  CheckInt64(order, 2, "order", layer);
  CheckInt64(received, 2, "received", layer);
  AUTOEP_CHECK(received.is_cpu(), layer, "received must be on the CPU, as dispatch returned it");
  AUTOEP_CHECK(received.size(0) == communicator_->size() && received.size(1) > 2 && order.size(1) % 2 == 0, layer, "received ",
               received.sizes(), " and order ", order.sizes(), " are not what dispatch returned on ", communicator_->size(),
               " ranks");
  slots_per_rank_ = received.size(1) - 2;
  first_ = order_.narrow(1, 0, order_.size(1) / 2).contiguous();
  num_rows_ = received.narrow(1, 0, slots_per_rank_).sum().item<int64_t>();
  send_ = ListOf(received.select(1, slots_per_rank_));
  receive_ = ListOf(received.select(1, slots_per_rank_ + 1));
}

Arrivals Exchange::Announce(const std::optional<at::Tensor>& factors) const {
  const at::Tensor numbers = Numbers(order_, factors);
  return AnnouncePacked(Pack(numbers, order_, communicator_->size(), numbers.scalar_type()), factors.has_value());
}

Arrivals Exchange::AnnouncePacked(const at::Tensor& packed, bool has_factors) const {
  const int64_t choices = first_.size(1);
  const at::Tensor numbers = SendPacked(packed);
  const at::Tensor ids = numbers.narrow(1, 0, choices).to(at::kLong).contiguous();
  const int64_t experts = slots_per_rank_ * communicator_->size();
  const at::Tensor table = RangeTable(experts, communicator_->rank() * slots_per_rank_, slots_per_rank_, ids.device());
  Arrivals arrivals{KernelsFor(ids.device()).order_pairs(ids, table, 1, layer_).order, std::nullopt};
  if (has_factors) arrivals.factors = numbers.narrow(1, choices, choices).contiguous();
  return arrivals;
}

at::Tensor Exchange::ToExperts(const at::Tensor& values, at::ScalarType type) const {
  return SendPacked(Pack(values, order_, communicator_->size(), type));
}

at::Tensor Exchange::SendPacked(const at::Tensor& packed) const {
  const int64_t tokens = std::accumulate(send_.begin(), send_.end(), int64_t{0});
  return communicator_->AllToAllRows(packed.narrow(0, 0, tokens), send_, receive_);
}

at::Tensor Exchange::ToTokens(const at::Tensor& values, at::ScalarType type) const {
  const at::Tensor rows = communicator_->AllToAllRows(values, receive_, send_);
  return KernelsFor(values.device()).sum_rows(rows, std::nullopt, first_, type);
}

at::ScalarType PartType(at::ScalarType rows, at::ScalarType sum) { return rows == at::kBFloat16 ? rows : sum; }

}  // namespace autoep::ops

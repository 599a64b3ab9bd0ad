// SPDX-License-Identifier: Apache-2.0
// The send plan, the count exchange with its cross-check, and the rows' way there and back.
#include "plugin/ops/exchange.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <string_view>
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

// A placement on one rank, [slots.size(), 1, 2], made once for each device and kept for good.
at::Tensor Table(const std::vector<int64_t>& slots, const at::Device& device) {
  static std::mutex mutex;
  static auto& tables = *new std::map<std::pair<std::vector<int64_t>, std::string>, at::Tensor>();
  const std::lock_guard lock(mutex);
  at::Tensor& table = tables[{slots, device.str()}];
  if (!table.defined()) {
    const at::Tensor kept = at::tensor(slots, at::kLong);
    table = at::stack({at::zeros_like(kept), kept}, 1).unsqueeze(1).to(device);
  }
  return table;
}

// Of the ranks and, last, of none: the send buffer has the other ranks in their order, then this one.
std::vector<int64_t> OwnLast(int64_t rank, int64_t ranks) {
  std::vector<int64_t> slots(ranks + 1);
  for (int64_t other = 0; other <= ranks; ++other) slots[other] = other > rank && other < ranks ? other - 1 : other;
  slots[rank] = ranks - 1;
  return slots;
}

SendPlan PlanSend(const Kernels& kernels, const PairOrder& pairs, int64_t rank, int64_t ranks, const std::string& layer) {
  const Destinations found = kernels.find_destinations(pairs.order, pairs.ends, ranks);
  const PairOrder tokens = kernels.order_pairs(found.ranks, Table(OwnLast(rank, ranks), found.ranks.device()), 1, layer);
  return {tokens.order, found.slots, tokens.counts.narrow(0, 0, ranks)};
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

at::Tensor SendPlan::Order() const { return at::cat({first, slots}, 1); }

SendPlan SendPlan::FromOrder(const at::Tensor& order) {
  const int64_t choices = order.size(1) / 2;
  return {order.narrow(1, 0, choices).contiguous(), order.narrow(1, choices, choices), {}};
}

CountExchange::CountExchange(comm::Communicator& communicator, const at::Tensor& counts, const at::Tensor& by_slot,
                             const at::Tensor& tokens, const std::string& signature, bool failed)
    : rank_(communicator.rank()),
      ranks_(communicator.size()),
      slots_(by_slot.size(0) / ranks_),
      experts_(by_slot.size(0)),
      timeout_(communicator.timeout(tokens.device().type())),
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
    const int64_t mark = entries[rank][slots_ + 1];
    AUTOEP_CHECK(mark != kFailed, layer, "rank ", rank, " of the group failed here; its own message says why");
    AUTOEP_CHECK(mark == mark_, layer, "rank ", rank, " of the group is in another call than rank ", rank_, " (", signature_,
                 "): every rank must run the same converted model, with inputs of one dtype");
  }
  const at::Tensor sent = host_.narrow(0, heard_.numel(), ranks_).unsqueeze(1);
  return {host_.narrow(0, heard_.numel() + ranks_, experts_).clone(),
          at::cat({answer.narrow(1, 0, slots_), sent, answer.narrow(1, slots_, 1)}, 1)};
}

at::Tensor Numbers(const SendPlan& plan, const std::optional<at::Tensor>& factors) {
  const at::ScalarType type = factors ? AccumulateType(factors->scalar_type()) : at::kFloat;
  const at::Tensor slots = plan.slots.to(type);  // far below where fp32 skips integers
  return factors ? at::cat({slots, factors->to(type)}, 1) : slots;
}

at::Tensor Pack(const at::Tensor& values, const SendPlan& plan, int64_t ranks, at::ScalarType type) {
  const int64_t most = plan.first.size(0) * std::min(plan.first.size(1), ranks);
  return KernelsFor(values.device()).spread_rows(values, std::nullopt, plan.first, most, type);
}

Exchange::Exchange(comm::CommunicatorPtr communicator, SendPlan plan, const at::Tensor& received, std::string layer)
    : communicator_(std::move(communicator)), plan_(std::move(plan)), layer_(std::move(layer)) {
  CheckInt64(received, 2, "received", layer_);
  AUTOEP_CHECK(received.is_cpu(), layer_, "received must be on the CPU, as dispatch returned it");
  AUTOEP_CHECK(received.size(0) == communicator_->size() && received.size(1) > 2, layer_, "received ", received.sizes(),
               " is not what dispatch returned on ", communicator_->size(), " ranks");
  slots_per_rank_ = received.size(1) - 2;
  const auto entries = received.accessor<int64_t, 2>();
  num_rows_ = 0;
  for (int64_t rank = 0; rank < received.size(0); ++rank) {
    for (int64_t slot = 0; slot < slots_per_rank_; ++slot) num_rows_ += entries[rank][slot];
    send_.push_back(entries[rank][slots_per_rank_]);
    receive_.push_back(entries[rank][slots_per_rank_ + 1]);
  }
}

Arrivals Exchange::Announce(const std::optional<at::Tensor>& factors) const {
  const at::Tensor numbers = Numbers(plan_, factors);
  return Arrive(Told(ToExperts(numbers, numbers.scalar_type()), factors.has_value()));
}

Choices Exchange::Told(const at::Tensor& numbers, bool has_factors) const {
  const int64_t choices = plan_.first.size(1);
  Choices told{numbers.narrow(1, 0, choices).to(at::kLong).contiguous(), std::nullopt};
  if (has_factors) told.factors = numbers.narrow(1, choices, choices).contiguous();
  return told;
}

at::Tensor Exchange::Placement(const at::Device& device) const {
  std::vector<int64_t> slots(communicator_->size() * slots_per_rank_, slots_per_rank_);
  std::iota(slots.begin() + communicator_->rank() * slots_per_rank_, slots.begin() + (communicator_->rank() + 1) * slots_per_rank_,
            0);
  return Table(slots, device);
}

Arrivals Exchange::Arrive(const Choices& choices) const {
  const at::Device device = choices.slots.device();
  const PairOrder pairs = KernelsFor(device).order_pairs(choices.slots, Placement(device), 1, layer_);
  return {pairs.ends.narrow(0, 0, slots_per_rank_), pairs.order, choices.factors};
}

at::Tensor Exchange::ToExperts(const at::Tensor& values, at::ScalarType type) const {
  return communicator_->AllToAllRows(Filled(Pack(values, plan_, communicator_->size(), type)), send_, receive_);
}

std::pair<Choices, at::Tensor> Exchange::AnnounceWith(const at::Tensor& numbers, bool has_factors, const at::Tensor& values) const {
  const std::vector<at::Tensor> arrived = communicator_->AllToAllEach({Filled(numbers), Filled(values)}, send_, receive_);
  return {Told(arrived[0], has_factors), arrived[1]};
}

at::Tensor Exchange::Filled(const at::Tensor& packed) const {
  return packed.narrow(0, 0, std::accumulate(send_.begin(), send_.end(), int64_t{0}));
}

at::Tensor Exchange::ToTokens(const at::Tensor& values, at::ScalarType type) const {
  const at::Tensor rows = communicator_->AllToAllRows(values, receive_, send_);
  return KernelsFor(values.device()).sum_rows(rows, std::nullopt, plan_.first, type);
}

std::vector<at::Tensor> Exchange::ToTokensEach(const std::vector<at::Tensor>& values) const {
  std::vector<at::Tensor> sums;
  for (const at::Tensor& rows : communicator_->AllToAllEach(values, receive_, send_)) {
    sums.push_back(KernelsFor(rows.device()).sum_rows(rows, std::nullopt, plan_.first, rows.scalar_type()));
  }
  return sums;
}

Sent SendTokens(comm::CommunicatorPtr communicator, const at::Tensor& x, const PairOrder& pairs,
                const std::optional<at::Tensor>& factors, const std::string& signature, const std::string& layer) {
  const Kernels& kernels = KernelsFor(x.device());
  const int64_t ranks = communicator->size();
  const int64_t experts = pairs.by_slot.size(0);
  std::optional<std::string> failure;
  if (pairs.bad_id) failure = BadId(*pairs.bad_id, experts);
  // After a failure the pairs have no order, and the others must still be told.
  SendPlan plan = failure ? SendPlan{{}, {}, at::zeros({ranks}, pairs.by_slot.options())}
                          : PlanSend(kernels, pairs, communicator->rank(), ranks, layer);
  CountExchange exchange_counts(*communicator, failure ? pairs.by_slot : pairs.counts, pairs.by_slot, plan.tokens, signature,
                                failure.has_value());
  at::Tensor numbers, rows;
  if (!failure) {
    numbers = Numbers(plan, factors);
    numbers = Pack(numbers, plan, ranks, numbers.scalar_type());
    rows = Pack(x, plan, ranks, x.scalar_type());
  }
  Counts counts = exchange_counts.Finish(failure, layer);
  Exchange exchange(std::move(communicator), plan, counts.received, layer);
  auto [choices, tokens] = exchange.AnnounceWith(numbers, factors.has_value(), rows);
  return {std::move(exchange), std::move(counts), std::move(plan), std::move(choices), std::move(tokens)};
}

std::string BadId(int64_t id, int64_t experts) {
  return c10::str("ids holds ", id, ", and there are ", experts, " experts, 0 to ", experts - 1);
}

std::string Signature(const at::Tensor& x, int64_t num_experts, const std::string& layer) {
  return c10::str(layer, ", hidden size ", x.size(1), ", ", x.scalar_type(), ", ", num_experts, " experts");
}

at::ScalarType PartType(at::ScalarType rows, at::ScalarType sum) { return rows == at::kBFloat16 ? rows : sum; }

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The send plan, and the rows' way there and back.
#include "plugin/ops/exchange.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#include "plugin/comm/resolve.h"
#include "plugin/contract/placement.h"
#include "plugin/ops/checks.h"

namespace autoep::ops {
namespace {

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

at::ScalarType NumberType(const std::optional<at::Tensor>& factors) {
  return factors ? AccumulateType(factors->scalar_type()) : at::kFloat;
}

// Rows of the send buffer that could be used.
int64_t Room(const SendPlan& plan, int64_t ranks) { return plan.first.size(0) * std::min(plan.first.size(1), ranks); }

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

comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const at::Device& device, const std::string& layer) {
  Result<comm::CommunicatorPtr> found = comm::ResolveCommunicator(group, ep_size, device);
  AUTOEP_CHECK(found.ok(), layer, found.status().message());
  return std::move(found).value();
}

comm::Traffic TrafficOf(const at::Tensor& tokens) {
  const at::Tensor entries = tokens.contiguous();
  std::vector<std::vector<int64_t>> rows;
  for (int64_t rank = 0; rank < entries.size(0); ++rank) {
    const int64_t* row = entries.const_data_ptr<int64_t>() + rank * entries.size(1);
    rows.emplace_back(row, row + entries.size(1));
  }
  return comm::Traffic(std::move(rows));
}

at::Tensor SendPlan::Order() const { return at::cat({first, slots}, 1); }

SendPlan SendPlan::FromOrder(const at::Tensor& order) {
  const int64_t choices = order.size(1) / 2;
  return {order.narrow(1, 0, choices).contiguous(), order.narrow(1, choices, choices), {}};
}

at::Tensor Numbers(const SendPlan& plan, const std::optional<at::Tensor>& factors) {
  const at::ScalarType type = NumberType(factors);
  const at::Tensor slots = plan.slots.to(type);  // far below where fp32 skips integers
  return factors ? at::cat({slots, factors->to(type)}, 1) : slots;
}

at::Tensor Pack(const at::Tensor& values, const SendPlan& plan, int64_t ranks, at::ScalarType type) {
  return KernelsFor(values.device()).spread_rows(values, std::nullopt, plan.first, Room(plan, ranks), type);
}

Exchange::Exchange(comm::CommunicatorPtr communicator, SendPlan plan, const at::Tensor& received, std::string layer)
    : communicator_(std::move(communicator)), plan_(std::move(plan)), layer_(std::move(layer)) {
  CheckInt64(received, 2, "received", layer_);
  AUTOEP_CHECK(received.is_cpu(), layer_, "received must be on the CPU, as dispatch returned it");
  const int64_t ranks = communicator_->size();
  AUTOEP_CHECK(received.size(0) == ranks && received.size(1) > ranks, layer_, "received ", received.sizes(),
               " is not what dispatch returned on ", ranks, " ranks");
  slots_per_rank_ = received.size(1) - ranks;
  const auto entries = received.accessor<int64_t, 2>();
  rows_from_.resize(ranks);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    for (int64_t slot = 0; slot < slots_per_rank_; ++slot) rows_from_[rank] += entries[rank][slot];
  }
  num_rows_ = std::accumulate(rows_from_.begin(), rows_from_.end(), int64_t{0});
  traffic_ = TrafficOf(received.narrow(1, slots_per_rank_, ranks));
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
  return communicator_->AllToAllRows(Filled(Pack(values, plan_, communicator_->size(), type)), traffic_);
}

std::pair<Choices, at::Tensor> Exchange::AnnounceWith(const at::Tensor& numbers, bool has_factors, const at::Tensor& values,
                                                      const comm::Boxed& boxed) const {
  const std::vector<at::Tensor> arrived = communicator_->AllToAllEach({Filled(numbers), Filled(values)}, traffic_, boxed);
  return {Told(arrived[0], has_factors), arrived[1]};
}

at::Tensor Exchange::Filled(const at::Tensor& packed) const { return packed.narrow(0, 0, traffic_.Sent(communicator_->rank())); }

at::Tensor Exchange::ToTokens(const at::Tensor& values, at::ScalarType type) const {
  const at::Tensor rows = communicator_->AllToAllRows(values, traffic_.Back());
  return KernelsFor(values.device()).sum_rows(rows, std::nullopt, plan_.first, type);
}

at::Tensor Exchange::ToTokens(int64_t columns, at::ScalarType part, const at::Tensor& like, at::ScalarType type,
                              const std::function<void(const at::Tensor& values)>& write) const {
  const comm::Traffic back = traffic_.Back();
  const comm::Outbox box = communicator_->MakeOutbox({{columns, part}}, back, like);
  write(box.parts[0]);
  const at::Tensor rows = communicator_->AllToAllEach(box.parts, back, comm::BoxedAll(back)).front();
  return KernelsFor(like.device()).sum_rows(rows, std::nullopt, plan_.first, type);
}

Exchange::Home Exchange::StartToTokens(const std::vector<at::Tensor>& values) const {
  Home home;
  home.rows_ = communicator_->StartEach(values, traffic_.Back());
  home.first_ = plan_.first;
  return home;
}

std::vector<at::Tensor> Exchange::Home::Wait() {
  std::vector<at::Tensor> sums;
  for (const at::Tensor& rows : rows_->Wait()) {
    sums.push_back(KernelsFor(rows.device()).sum_rows(rows, std::nullopt, first_, rows.scalar_type()));
  }
  return sums;
}

std::optional<at::Tensor> Exchange::RoundTrip(const Packed& packed, at::ScalarType part, at::ScalarType type,
                                              const comm::Seconds& seconds, const Work& work) const {
  const at::Tensor tokens = Filled(packed.box.parts[1]);
  const auto answer = [&](const std::vector<int64_t>& sources, const std::vector<at::Tensor>& came, const at::Tensor& answers) {
    int64_t num_rows = 0;
    for (const int64_t source : sources) num_rows += rows_from_[source];
    work(Told(came[0], packed.has_factors), came[1], num_rows, answers);
  };
  const std::optional<at::Tensor> home = communicator_->RoundTrip({Filled(packed.box.parts[0]), tokens}, traffic_,
                                                                  packed.counts.boxed, {tokens.size(1), part, seconds, answer});
  if (!home) return std::nullopt;
  return KernelsFor(tokens.device()).sum_rows(*home, std::nullopt, plan_.first, type);
}

std::pair<Choices, at::Tensor> Packed::Send() const {
  return exchange.AnnounceWith(box.parts[0], has_factors, box.parts[1], counts.boxed);
}

Packed PackTokens(comm::CommunicatorPtr communicator, const at::Tensor& x, const PairOrder& pairs,
                  const std::optional<at::Tensor>& factors, const std::string& signature, const std::string& layer) {
  const Kernels& kernels = KernelsFor(x.device());
  const int64_t ranks = communicator->size();
  const int64_t experts = pairs.by_slot.size(0);
  comm::Outbox box;
  std::optional<std::string> failure;
  if (pairs.bad_id) failure = BadId(*pairs.bad_id, experts);
  // After a failure the pairs have no order, and the others must still be told.
  SendPlan plan = failure ? SendPlan{{}, {}, at::zeros({ranks}, pairs.by_slot.options())}
                          : PlanSend(kernels, pairs, communicator->rank(), ranks, layer);
  const auto pack = [&] {
    const at::Tensor numbers = Numbers(plan, factors);
    kernels.spread_into(box.parts[0], numbers, std::nullopt, plan.first);
    kernels.spread_into(box.parts[1], x, std::nullopt, plan.first);
  };
  if (!failure) {
    const int64_t numbers = pairs.order.size(1) * (factors ? 2 : 1);
    box = communicator->MakeOutbox({{numbers, NumberType(factors)}, {x.size(1), x.scalar_type()}}, Room(plan, ranks), x);
    if (box.room > 0) pack();  // it is to be there when the counts are
  }
  CountExchange exchange_counts(*communicator, failure ? pairs.by_slot : pairs.counts, pairs.by_slot, plan.tokens, box.room,
                                signature, failure.has_value());
  if (!failure && box.room <= 0) pack();
  Counts counts = exchange_counts.Finish(failure, layer);
  Exchange exchange(std::move(communicator), plan, counts.received, layer);
  return {std::move(exchange), std::move(counts), std::move(plan), factors.has_value(), std::move(box)};
}

std::string BadId(int64_t id, int64_t experts) {
  return c10::str("ids holds ", id, ", and there are ", experts, " experts, 0 to ", experts - 1);
}

std::string Signature(const at::Tensor& x, int64_t num_experts, const std::string& layer) {
  return c10::str(layer, ", hidden size ", x.size(1), ", ", x.scalar_type(), ", ", num_experts, " experts");
}

at::ScalarType PartType(at::ScalarType rows, at::ScalarType sum) { return rows == at::kBFloat16 ? rows : sum; }

}  // namespace autoep::ops

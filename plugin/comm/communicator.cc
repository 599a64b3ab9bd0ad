// SPDX-License-Identifier: Apache-2.0
// What a transport does that has no outboxes and moves nothing aside.
#include "plugin/comm/communicator.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

namespace autoep::comm {
namespace {

class Arrived : public Arriving {
 public:
  explicit Arrived(std::vector<at::Tensor> rows) : rows_(std::move(rows)) {}
  std::vector<at::Tensor> Wait() override { return std::move(rows_); }

 private:
  std::vector<at::Tensor> rows_;
};

}  // namespace

at::Tensor Message::Whole() const {
  const int64_t ranks = each.size(0);
  std::vector<at::Tensor> parts = {each};
  if (all.defined()) parts.push_back(all.unsqueeze(0).expand({ranks, all.size(0)}));
  for (const int64_t number : numbers) parts.push_back(at::full({ranks, 1}, number, each.options()));
  return at::cat(parts, 1);
}

Boxed BoxedAll(const Traffic& traffic) {
  Boxed boxed;
  for (int64_t rank = 0; rank < traffic.ranks(); ++rank) boxed.rooms.push_back(traffic.Sent(rank));
  return boxed;
}

Outbox Communicator::MakeOutbox(const Columns& parts, int64_t room, const at::Tensor& like) {
  Outbox box{{}, -room};
  for (const auto& [columns, type] : parts) box.parts.push_back(at::empty({room, columns}, like.options().dtype(type)));
  return box;
}

Outbox Communicator::MakeOutbox(const Columns& parts, const Traffic& traffic, const at::Tensor& like) {
  return MakeOutbox(parts, traffic.Sent(rank()), like);
}

std::unique_ptr<Arriving> Communicator::StartEach(const std::vector<at::Tensor>& rows, const Traffic& traffic) {
  return std::make_unique<Arrived>(AllToAllEach(rows, traffic));
}

std::optional<at::Tensor> Communicator::RoundTrip(const std::vector<at::Tensor>&, const Traffic&, const Boxed&, const Worker&) {
  return std::nullopt;
}

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// Split sizes, the count exchange with its cross-check, and the regrouping of received rows.
#include "plugin/ops/exchange.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

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

// rows made of `sizes`, block (a, b) at a * count_b + b; returns them in the order of b, then a.
at::Tensor SwapBlocks(const at::Tensor& rows, const std::vector<int64_t>& sizes, int64_t count_a, int64_t count_b) {
  if (count_a == 1 || count_b == 1) return rows;
  const std::vector<at::Tensor> blocks = rows.split_with_sizes(sizes);
  std::vector<at::Tensor> swapped;
  swapped.reserve(blocks.size());
  for (int64_t b = 0; b < count_b; ++b) {
    for (int64_t a = 0; a < count_a; ++a) swapped.push_back(blocks[a * count_b + b]);
  }
  return at::cat(swapped);
}

std::vector<int64_t> Transposed(const std::vector<int64_t>& sizes, int64_t count_a, int64_t count_b) {
  std::vector<int64_t> transposed;
  for (int64_t b = 0; b < count_b; ++b) {
    for (int64_t a = 0; a < count_a; ++a) transposed.push_back(sizes[a * count_b + b]);
  }
  return transposed;
}

void CheckTable(const at::Tensor& placement, int64_t ep_size, const std::string& layer) {
  contract::Placement table{.ep_size = ep_size, .experts = {}};
  const auto entries = placement.accessor<int64_t, 3>();
  for (int64_t expert = 0; expert < placement.size(0); ++expert)
    table.experts.push_back({entries[expert][0][0], entries[expert][0][1]});
  const Status status = contract::CheckPlacement(table);
  AUTOEP_CHECK(status.ok(), layer, status.message());
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

at::Tensor SlotNumbers(const at::Tensor& placement, int64_t ep_size, const at::Device& device, const std::string& layer) {
  CheckPlacement(placement, ep_size, layer);
  const int64_t slots = placement.size(0) / ep_size;
  const at::Tensor table = placement.to(device).select(1, 0);
  return table.select(1, 0).mul(slots).add(table.select(1, 1));
}

comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const std::string& layer) {
  Result<comm::CommunicatorPtr> found = comm::ResolveCommunicator(group, ep_size);
  AUTOEP_CHECK(found.ok(), layer, found.status().message());
  return std::move(found).value();
}

at::Tensor ExchangeCounts(comm::Communicator& communicator, const at::Tensor& sent, const std::string& signature,
                          const std::optional<std::string>& failure, const std::string& layer) {
  const int64_t ranks = communicator.size();
  const int64_t mark = failure ? kFailed : Hash(signature);
  const at::Tensor message = at::cat({sent, at::full({ranks, 1}, mark, sent.options())}, 1);
  const at::Tensor answer = communicator.AllToAllCounts(message).cpu();
  AUTOEP_CHECK(!failure, layer, *failure);
  const int64_t slots = sent.size(1);
  const auto entries = answer.accessor<int64_t, 2>();
  for (int64_t rank = 0; rank < ranks; ++rank) {
    AUTOEP_CHECK(entries[rank][slots] != kFailed, layer, "rank ", rank, " of the group failed here; its own message says why");
    AUTOEP_CHECK(entries[rank][slots] == mark, layer, "rank ", rank, " of the group is in another call than rank ",
                 communicator.rank(), " (", signature, "): every rank must run the same converted model, with inputs of one dtype");
  }
  return answer.narrow(1, 0, slots).contiguous();
}

Exchange::Exchange(const at::Tensor& counts, const at::Tensor& received, const at::Tensor& placement, int64_t ep_size,
                   const std::string& group, const std::string& layer) {
  if (ep_size == 1) return;
  CheckInt64(counts, 1, "counts", layer);
  CheckInt64(received, 2, "received", layer);
  AUTOEP_CHECK(counts.is_cpu() && received.is_cpu(), layer, "counts and received must be on the CPU, as dispatch returned them");
  AUTOEP_CHECK(counts.size(0) == placement.size(0) && received.size(0) == ep_size && received.size(1) * ep_size == counts.size(0),
               layer, "counts ", counts.sizes(), " and received ", received.sizes(), " are not those of ", placement.size(0),
               " experts on ", ep_size, " ranks");
  communicator_ = Resolve(group, ep_size, layer);
  const at::Tensor slots = SlotNumbers(placement.cpu(), ep_size, at::kCPU, layer);
  SetSplits(counts.new_empty(counts.sizes()).index_copy_(0, slots, counts).view({ep_size, -1}), received);
}

Exchange::Exchange(comm::CommunicatorPtr communicator, const at::Tensor& sent, const at::Tensor& received)
    : communicator_(std::move(communicator)) {
  SetSplits(sent, received);
}

void Exchange::SetSplits(const at::Tensor& sent, const at::Tensor& received) {
  const auto to = sent.accessor<int64_t, 2>();
  const auto from = received.accessor<int64_t, 2>();
  for (int64_t rank = 0; rank < communicator_->size(); ++rank) {
    int64_t send = 0;
    int64_t receive = 0;
    for (int64_t slot = 0; slot < sent.size(1); ++slot) {
      send += to[rank][slot];
      receive += from[rank][slot];
      blocks_.push_back(from[rank][slot]);
    }
    send_.push_back(send);
    receive_.push_back(receive);
  }
}

at::Tensor Exchange::Deliver(const at::Tensor& send) const {
  if (communicator_ == nullptr) return send;
  const int64_t ranks = communicator_->size();
  const int64_t slots = static_cast<int64_t>(blocks_.size()) / ranks;
  return SwapBlocks(communicator_->AllToAllRows(send, send_, receive_), blocks_, ranks, slots);
}

at::Tensor Exchange::Return(const at::Tensor& rows) const {
  if (communicator_ == nullptr) return rows;
  const int64_t ranks = communicator_->size();
  const int64_t slots = static_cast<int64_t>(blocks_.size()) / ranks;
  return communicator_->AllToAllRows(SwapBlocks(rows, Transposed(blocks_, ranks, slots), slots, ranks), receive_, send_);
}

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The meeting point of virtual ranks: each puts its tensor down, waits for all, takes its parts, waits for all.
#include "plugin/comm/local.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace autoep::comm {

class LocalExchange {
 public:
  LocalExchange(std::string name, int64_t size, std::chrono::milliseconds timeout)
      : name_(std::move(name)), size_(size), timeout_(timeout), parcels_(size) {}

  const std::string& name() const { return name_; }
  int64_t size() const { return size_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  void Reset() {
    const std::lock_guard lock(mutex_);
    arrived_ = 0;
    left_.reset();
    failure_.clear();
  }

  at::Tensor Exchange(int64_t rank, const at::Tensor& rows, std::vector<int64_t> send, const std::vector<int64_t>& receive) {
    Put(rank, rows, std::move(send));
    Meet(rank);
    std::vector<at::Tensor> parts;
    for (const int64_t source : OwnLast(rank)) parts.push_back(Take(source, rank, receive[source]));
    at::Tensor received = at::cat(parts);
    Meet(rank);
    return received;
  }

  void Leave(int64_t rank) {
    const std::lock_guard lock(mutex_);
    left_ = rank;
    if (arrived_ > 0) FailLocked(Unequal(rank));
  }

  void Fail(const std::string& sentence) {
    const std::lock_guard lock(mutex_);
    FailLocked(sentence);
  }

  Status Outcome() {
    const std::lock_guard lock(mutex_);
    return failure_.empty() ? Status() : Status(Code::kPlugin, failure_);
  }

 private:
  // The ranks in the order of a rank's rows.
  std::vector<int64_t> OwnLast(int64_t rank) const {
    std::vector<int64_t> ranks;
    for (int64_t other = 0; other < size_; ++other) {
      if (other != rank) ranks.push_back(other);
    }
    ranks.push_back(rank);
    return ranks;
  }

  struct Parcel {
    at::Tensor rows;  // a reference: stays alive though its rank fails
    std::vector<int64_t> send;
  };

  std::string Unequal(int64_t rank) const {
    return fmt::format(
        "local group '{}': rank {} finished while other ranks wait for it: the ranks ran different models, or only some "
        "ran a backward pass",
        name_, rank);
  }

  void FailLocked(const std::string& sentence) {
    if (failure_.empty()) failure_ = sentence;
    changed_.notify_all();
  }

  void Put(int64_t rank, const at::Tensor& rows, std::vector<int64_t> send) {
    const std::lock_guard lock(mutex_);
    parcels_[rank] = {rows, std::move(send)};
  }

  at::Tensor Take(int64_t source, int64_t rank, int64_t expected) {
    const std::lock_guard lock(mutex_);
    const Parcel& parcel = parcels_[source];
    TORCH_CHECK(parcel.send[rank] == expected, "autoep: rank ", source, " sends ", parcel.send[rank], " rows to rank ", rank,
                ", which expects ", expected);
    int64_t begin = 0;
    for (const int64_t other : OwnLast(source)) {
      if (other == rank) break;
      begin += parcel.send[other];
    }
    return parcel.rows.narrow(0, begin, expected);
  }

  // Returns when every rank is here.
  void Meet(int64_t rank) {
    std::unique_lock lock(mutex_);
    if (left_) FailLocked(Unequal(*left_));
    const uint64_t meeting = meeting_;
    if (failure_.empty() && ++arrived_ == size_) {
      arrived_ = 0;
      ++meeting_;
      changed_.notify_all();
      return;
    }
    const bool in_time = changed_.wait_for(lock, timeout_, [&] { return meeting_ != meeting || !failure_.empty(); });
    if (!in_time)
      FailLocked(fmt::format("local group '{}': rank {} waited {} s for the others", name_, rank, timeout_.count() / 1000.0));
    TORCH_CHECK(meeting_ != meeting, "autoep: ", failure_);
  }

  const std::string name_;
  const int64_t size_;
  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Parcel> parcels_;
  int64_t arrived_ = 0;
  uint64_t meeting_ = 0;
  std::optional<int64_t> left_;  // a rank that finished
  std::string failure_;
};

namespace {

class LocalCommunicator : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalExchange> exchange, int64_t rank) : exchange_(std::move(exchange)), rank_(rank) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return exchange_->size(); }
  std::chrono::milliseconds timeout(c10::DeviceType) const override { return exchange_->timeout(); }
  const std::string& name() const { return exchange_->name(); }

  at::Tensor AllToAllRows(const at::Tensor& rows, std::vector<int64_t> send, std::vector<int64_t> receive) override {
    return exchange_->Exchange(rank_, rows, std::move(send), receive);
  }

  at::Tensor AllToAllCounts(const at::Tensor& counts) override {
    const std::vector<int64_t> one(size(), 1);
    const at::Tensor own_last =
        at::cat({counts.narrow(0, 0, rank_), counts.narrow(0, rank_ + 1, size() - rank_ - 1), counts.narrow(0, rank_, 1)});
    const at::Tensor received = AllToAllRows(own_last, one, one);
    return at::cat(
        {received.narrow(0, 0, rank_), received.narrow(0, size() - 1, 1), received.narrow(0, rank_, size() - rank_ - 1)});
  }

 private:
  const std::shared_ptr<LocalExchange> exchange_;
  const int64_t rank_;
};

thread_local std::shared_ptr<LocalCommunicator> bound;

void RunRank(const std::shared_ptr<LocalExchange>& exchange, int64_t rank, const at::ThreadLocalState& state,
             const std::function<void(int64_t)>& body) {
  const at::ThreadLocalStateGuard guard(state);
  bound = std::make_shared<LocalCommunicator>(exchange, rank);
  const auto fail = [&](const char* what) {
    exchange->Fail(fmt::format("rank {} of the local group '{}' failed: {}", rank, exchange->name(), what));
  };
  try {
    body(rank);
    exchange->Leave(rank);
  } catch (const c10::Error& error) {
    fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    fail(error.what());
  }
  bound.reset();
}

}  // namespace

LocalGroup::LocalGroup(std::string name, int64_t size, std::chrono::milliseconds timeout)
    : exchange_(std::make_shared<LocalExchange>(std::move(name), size, timeout)) {}

LocalGroup::~LocalGroup() = default;

Status LocalGroup::Run(const std::function<void(int64_t)>& body) {
  exchange_->Reset();
  const at::ThreadLocalState state;
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < exchange_->size(); ++rank) {
    threads.emplace_back([&, rank] { RunRank(exchange_, rank, state, body); });
  }
  for (std::thread& thread : threads) thread.join();
  return exchange_->Outcome();
}

CommunicatorPtr BoundLocalRank(const std::string& name) {
  return bound != nullptr && (name.empty() || name == bound->name()) ? bound : nullptr;
}

}  // namespace autoep::comm

// SPDX-License-Identifier: Apache-2.0
// The meeting point of virtual ranks: each puts its tensor down, waits for all, takes its parts, waits for all.
#include "plugin/comm/local.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

  at::Tensor Exchange(int64_t rank, const at::Tensor& rows, const Traffic& traffic) {
    Put(rank, rows, traffic);
    Meet(rank);
    at::Tensor received = at::empty({traffic.Received(rank), rows.size(1)}, rows.options());
    for (int64_t source = 0; source < size_; ++source) {
      const at::Tensor taken = Take(source, rank, traffic.Rows(source, rank));
      received.narrow(0, traffic.ReceiveBegin(source, rank), taken.size(0)).copy_(taken);
    }
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
  struct Parcel {
    at::Tensor rows;  // a reference: stays alive though its rank fails
    std::optional<Traffic> traffic;
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

  void Put(int64_t rank, const at::Tensor& rows, const Traffic& traffic) {
    const std::lock_guard lock(mutex_);
    parcels_[rank] = {rows, traffic};
  }

  at::Tensor Take(int64_t source, int64_t rank, int64_t expected) {
    const std::lock_guard lock(mutex_);
    const Parcel& parcel = parcels_[source];
    const int64_t sent = parcel.traffic->Rows(source, rank);
    TORCH_CHECK(sent == expected, "autoep: rank ", source, " sends ", sent, " rows to rank ", rank, ", which expects ", expected);
    return parcel.rows.narrow(0, parcel.traffic->SendBegin(source, rank), expected);
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

  std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed&) override {
    std::vector<at::Tensor> received;
    for (const at::Tensor& one : rows) received.push_back(exchange_->Exchange(rank_, one, traffic));
    return received;
  }

  // Nothing is gained; on the CPU it costs little, and virtual ranks then go the ways that GPUs do.
  std::optional<at::Tensor> RoundTrip(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed&,
                                      const Worker& worker) override {
    if (!rows.front().is_cpu()) return std::nullopt;
    const std::vector<at::Tensor> came = AllToAllEach(rows, traffic, {});
    const at::TensorOptions options = rows.back().options().dtype(worker.type);
    const at::Tensor home = at::empty({traffic.Received(rank_), worker.columns}, options);
    const at::Tensor answers = at::empty({traffic.Coming(rank_), worker.columns}, options);
    const auto from = [&](const at::Tensor& received, int64_t source) {
      return received.narrow(0, traffic.ReceiveBegin(source, rank_), traffic.Rows(source, rank_));
    };
    const auto work_on = [&](const std::vector<int64_t>& sources, const at::Tensor& to) {
      std::vector<at::Tensor> parts;
      for (const at::Tensor& part : came) {
        std::vector<at::Tensor> theirs;
        for (const int64_t source : sources) theirs.push_back(from(part, source));
        parts.push_back(at::cat(theirs));
      }
      if (to.size(0) > 0) worker.answer(sources, parts, to);
    };
    work_on({rank_}, from(home, rank_));
    for (const Group& group : GroupSteps(size(), (size() + 1) / 2)) {
      const int64_t begin = StepBegin(traffic, rank_, group.begin), end = StepBegin(traffic, rank_, group.end);
      work_on(SourcesOf(group, rank_, size()), answers.narrow(0, begin, end - begin));
    }
    for (int64_t step = 1; step < size(); ++step) {
      const int64_t source = SourceAt(rank_, step, size());
      from(home, source).copy_(answers.narrow(0, StepBegin(traffic, rank_, step), traffic.Rows(source, rank_)));
    }
    return AllToAllRows(home, traffic.Back());
  }

  at::Tensor AllToAllCounts(const Message& message) override {
    const at::Tensor counts = message.Whole();
    const Traffic one(std::vector<std::vector<int64_t>>(size(), std::vector<int64_t>(size(), 1)));
    at::Tensor sent = at::empty_like(counts);
    for (int64_t to = 0; to < size(); ++to) sent.select(0, one.SendBegin(rank_, to)).copy_(counts.select(0, to));
    const at::Tensor came = AllToAllRows(sent, one);
    at::Tensor received = at::empty_like(counts);
    for (int64_t from = 0; from < size(); ++from) received.select(0, from).copy_(came.select(0, one.ReceiveBegin(from, rank_)));
    return received;
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

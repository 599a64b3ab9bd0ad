// SPDX-License-Identifier: Apache-2.0
// Virtual ranks: what is exchanged, and that no failure leaves a rank waiting.
#include "plugin/comm/local.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "plugin/comm/resolve.h"

namespace autoep::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

CommunicatorPtr Self(int64_t size) {
  Result<CommunicatorPtr> found = ResolveCommunicator("", size);
  TORCH_CHECK(found.ok(), found.status().message());
  return *found;
}

// Rank r sends r + 1 + d rows of value 10 * r + d to rank d, and none to itself.
TEST(LocalGroup, DeliversEachRankItsRows) {
  constexpr int64_t kRanks = 4;
  LocalGroup group("ep", kRanks);
  const auto count = [](int64_t from, int64_t to) { return from == to ? 0 : from + 1 + to; };
  std::vector<std::vector<int64_t>> rows(kRanks);
  for (int64_t from = 0; from < kRanks; ++from) {
    for (int64_t to = 0; to < kRanks; ++to) rows[from].push_back(count(from, to));
  }
  const Traffic traffic(rows);
  const Status status = group.Run([&](int64_t rank) {
    for (int round = 0; round < 20; ++round) {
      std::vector<double> values, expected;
      for (int64_t peer = 0; peer < kRanks; ++peer) {
        values.insert(values.end(), count(rank, peer), 10.0 * rank + peer + round);
        expected.insert(expected.end(), count(peer, rank), 10.0 * peer + rank + round);
      }
      const at::Tensor received = Self(kRanks)->AllToAllRows(at::tensor(values).view({-1, 1}), traffic);
      TORCH_CHECK(received.equal(at::tensor(expected).view({-1, 1})), "rank ", rank, " got ", received);
    }
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

// Rank r sends (r + d) % 3 rows of value 10 * r + d to rank d, which adds 100 * d.
TEST(LocalGroup, RoundTripAnswersEverySourceOnce) {
  for (const int64_t ranks : {2, 3, 4, 5, 8}) {
    SCOPED_TRACE(ranks);
    std::vector<std::vector<int64_t>> rows(ranks);
    for (int64_t from = 0; from < ranks; ++from) {
      for (int64_t to = 0; to < ranks; ++to) rows[from].push_back((from + to) % 3);
    }
    const Traffic traffic(rows);
    LocalGroup group("ep", ranks);
    const Status status = group.Run([&](int64_t rank) {
      std::vector<double> values, expected;
      for (int64_t step = 1; step <= ranks; ++step) {  // the others in their order, then this one
        const int64_t to = step == ranks ? rank : step - (step <= rank);
        values.insert(values.end(), rows[rank][to], 10.0 * rank + to);
        expected.insert(expected.end(), rows[rank][to], 10.0 * rank + to + 100 * to);
      }
      const auto answer = [&](const std::vector<int64_t>& sources, const std::vector<at::Tensor>& came, const at::Tensor& answers) {
        std::vector<double> told;
        for (const int64_t source : sources) told.insert(told.end(), rows[source][rank], 10.0 * source + rank);
        TORCH_CHECK(came.at(0).equal(at::tensor(told).view({-1, 1})), "rank ", rank, " works on ", came.at(0));
        answers.copy_(came.at(0).add(100 * rank));
      };
      const Worker worker{1, at::kDouble, {}, answer};
      const std::optional<at::Tensor> home = Self(ranks)->RoundTrip({at::tensor(values).view({-1, 1})}, traffic, {}, worker);
      TORCH_CHECK(home && home->equal(at::tensor(expected).view({-1, 1})), "rank ", rank, " got ", *home);
    });
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(LocalGroup, CountsArriveBySource) {
  LocalGroup group("ep", 3);
  const Status status = group.Run([&](int64_t rank) {
    const at::Tensor received = Self(3)->AllToAllCounts({at::full({3, 2}, rank, at::kLong)});
    TORCH_CHECK(received.equal(at::tensor({0, 0, 1, 1, 2, 2}, at::kLong).view({3, 2})), received);
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(LocalGroup, MessagesAreEachOnesThenAllsThenNumbers) {
  LocalGroup group("ep", 2);
  const Status status = group.Run([&](int64_t rank) {
    const at::Tensor each = at::tensor({10 * rank, 10 * rank + 1}, at::kLong).view({2, 1});  // the second is for rank 1
    const at::Tensor received = Self(2)->AllToAllCounts({each, at::full({2}, 20 + rank, at::kLong), {30 + rank, -1}});
    const at::Tensor expected = at::tensor({rank, 20L, 20L, 30L, -1L, 10 + rank, 21L, 21L, 31L, -1L}, at::kLong).view({2, 5});
    TORCH_CHECK(received.equal(expected), "rank ", rank, " heard ", received);
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(LocalGroup, ARankThatThrowsFailsTheOthers) {
  LocalGroup group("ep", 4);
  std::atomic<int> told = 0;
  const Status status = group.Run([&](int64_t rank) {
    if (rank == 2) throw std::runtime_error("the cellar is flooded");
    try {
      Self(4)->AllToAllCounts({at::full({4, 1}, rank, at::kLong)});
    } catch (const c10::Error& error) {
      if (std::string(error.what()).find("the cellar is flooded") != std::string::npos) ++told;
      throw;
    }
  });
  EXPECT_EQ(told, 3);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("rank 2"), HasSubstr("'ep'"), HasSubstr("the cellar is flooded")));
}

// Rank 1 finishes while rank 0 waits, or before it comes: the order is the threads' own, unless one of them is held back.
void StopEarly(std::chrono::milliseconds rank_0_waits, std::chrono::milliseconds rank_1_waits) {
  LocalGroup group("ep", 2);
  const Status status = group.Run([&](int64_t rank) {
    std::this_thread::sleep_for(rank == 0 ? rank_0_waits : rank_1_waits);
    if (rank == 0) Self(2)->AllToAllCounts({at::full({2, 1}, rank, at::kLong)});
  });
  EXPECT_THAT(status.message(), HasSubstr("rank 1 finished while other ranks wait"));
}

TEST(LocalGroup, ARankThatStopsEarlyFailsTheOthers) {
  StopEarly(0ms, 100ms);
  StopEarly(100ms, 0ms);
}

TEST(LocalGroup, RunsAgainAfterAFailure) {
  LocalGroup group("ep", 2);
  EXPECT_FALSE(group.Run([](int64_t) { throw std::runtime_error("once"); }).ok());
  const Status status = group.Run([&](int64_t rank) { Self(2)->AllToAllCounts({at::full({2, 1}, rank, at::kLong)}); });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(LocalGroup, SplitsThatDisagreeAreAnError) {
  LocalGroup group("ep", 2);
  const Status status = group.Run([&](int64_t rank) {
    Self(2)->AllToAllRows(at::full({2, 1}, rank), Traffic({{1, rank == 0 ? 1 : 2}, {1, 1}}));
  });
  EXPECT_THAT(status.message(), HasSubstr("sends 1 rows to rank 1, which expects 2"));
}

TEST(LocalGroup, FoundByNameOnItsThreadsOnly) {
  LocalGroup group("ep", 2);
  EXPECT_TRUE(group
                  .Run([](int64_t rank) {
                    const Result<CommunicatorPtr> named = ResolveCommunicator("ep", 2);
                    TORCH_CHECK(named.ok() && (*named)->rank() == rank && (*named)->size() == 2);
                    TORCH_CHECK(!ResolveCommunicator("other", 2).ok());
                  })
                  .ok());
  EXPECT_FALSE(ResolveCommunicator("ep", 2).ok());
}

TEST(LocalGroup, TakesTheCallersGradMode) {
  LocalGroup group("ep", 2);
  const c10::AutoGradMode off(false);
  EXPECT_TRUE(group.Run([](int64_t) { TORCH_CHECK(!c10::GradMode::is_enabled()); }).ok());
}

TEST(Resolve, SaysWhatIsMissing) {
  const Status unnamed = ResolveCommunicator("", 2).status();
  EXPECT_EQ(unnamed.code(), Code::kPlugin);
  EXPECT_THAT(unnamed.message(), HasSubstr("no default process group"));
  EXPECT_THAT(ResolveCommunicator("left", 2).status().message(), HasSubstr("'left'"));
  LocalGroup group("ep", 2);
  const Status wrong_size = group.Run([](int64_t) {
    const Status status = ResolveCommunicator("ep", 4).status();
    TORCH_CHECK(status.ok(), status.message());
  });
  EXPECT_THAT(wrong_size.message(), AllOf(HasSubstr("has 2 ranks"), HasSubstr("spread over 4")));
}

}  // namespace
}  // namespace autoep::comm

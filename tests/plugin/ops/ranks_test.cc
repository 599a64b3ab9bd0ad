// SPDX-License-Identifier: Apache-2.0
// The ops on several virtual ranks, each with its own tokens, against one plain computation: outputs, all gradients, and that
// every rank's experts see exactly the rows routed to them.
#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "plugin/comm/local.h"
#include "plugin/ops/recorder.h"
#include "tests/plugin/ops/moe_layer.h"

namespace autoep::testing {
namespace {

using comm::LocalGroup;

// By dispatch, experts and combine, or by moe.
class Ranks : public ::testing::TestWithParam<bool> {
 protected:
  static MoeLayer RandomLayer(LayerOptions options) {
    options.fused = GetParam();
    return testing::RandomLayer(options);
  }
};

INSTANTIATE_TEST_SUITE_P(, Ranks, ::testing::Bool(), [](const auto& info) { return info.param ? "Moe" : "ThreeOps"; });

// Every rank's output and input gradients, and the experts' gradients, which sum over all ranks' tokens.
void CheckRanks(const MoeLayer& layer, const std::vector<Tokens>& tokens) {
  const auto ranks = static_cast<int64_t>(tokens.size());
  std::vector<Gradients> expected;
  for (const Tokens& mine : tokens) expected.push_back(Backward(Reference(layer, mine), layer, mine));
  LocalGroup group("ep", ranks);
  const Status status = group.Run([&](int64_t rank) {
    const Gradients actual = CheckRank(layer, tokens[rank], rank, ranks, "ep");
    const at::Tensor held = at::tensor(layer.ExpertsOf(rank, ranks));
    for (size_t i = 0; i < actual.experts.size(); ++i) {
      at::Tensor sum = at::zeros_like(actual.experts[i], at::kDouble);
      for (const Gradients& grads : expected) sum.add_(grads.experts[i].index_select(0, held));
      CheckClose(actual.experts[i], sum, layer.options.type, c10::str("gradient of weight ", i));
    }
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

std::vector<Tokens> EachItsOwn(const MoeLayer& layer, int64_t ranks, int64_t k, bool scaled = false) {
  const std::vector<int64_t> counts = {5, 0, 9, 1, 3, 0, 7, 2};
  std::vector<Tokens> tokens;
  for (int64_t rank = 0; rank < ranks; ++rank) tokens.push_back(RandomTokens(layer, counts[rank], k, rank, scaled));
  return tokens;
}

TEST_P(Ranks, EveryRankCountAndDtype) {
  for (const int64_t ranks : {1, 2, 4, 8}) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
      for (const bool shuffled : {false, true}) {
        SCOPED_TRACE(c10::str(ranks, " ranks ", type, " shuffled ", shuffled));
        const MoeLayer layer = RandomLayer({.type = type, .biases = true, .shuffled = shuffled});
        CheckRanks(layer, EachItsOwn(layer, ranks, 3));
      }
    }
  }
}

TEST_P(Ranks, ScaledOnTheWayOut) {
  for (const int64_t ranks : {2, 4}) {
    const MoeLayer layer = RandomLayer({.shuffled = true});
    std::vector<Tokens> tokens = EachItsOwn(layer, ranks, 2, /*scaled=*/true);
    CheckRanks(layer, tokens);
    for (Tokens& mine : tokens) mine.weights.reset();
    CheckRanks(layer, tokens);
  }
}

TEST_P(Ranks, EdgeRouting) {
  for (const int64_t ranks : {2, 4, 8}) {
    SCOPED_TRACE(ranks);
    const MoeLayer layer = RandomLayer({});
    const auto all = [&](const auto& make) {
      std::vector<Tokens> tokens;
      for (int64_t rank = 0; rank < ranks; ++rank) tokens.push_back(make(rank));
      CheckRanks(layer, tokens);
    };
    all([&](int64_t rank) { return RandomTokens(layer, 0, 2, rank); });
    all([&](int64_t rank) { return RandomTokens(layer, rank == ranks - 1 ? 1 : 0, 1, rank); });
    all([&](int64_t rank) { return RandomTokens(layer, 3, 8, rank); });
    all([&](int64_t rank) { return TokensFor(layer, at::full({4, 1}, 5, at::kLong), rank); });
    all([&](int64_t rank) { return TokensFor(layer, at::full({4, 2}, rank % 2, at::kLong), rank); });
  }
}

// Expert i returns the constant i: what comes back names the expert that made it.
TEST_P(Ranks, MarkersComeBackFromTheirExperts) {
  for (const int64_t ranks : {1, 2, 4, 8}) {
    for (const bool shuffled : {false, true}) {
      MoeLayer layer = RandomLayer({.type = at::kFloat, .biases = true, .shuffled = shuffled});
      const at::Tensor marker = at::arange(8, at::kFloat);
      layer.down = at::zeros_like(layer.down);
      layer.down_bias = marker.unsqueeze(1).expand({8, 6}).contiguous();
      LocalGroup group("ep", ranks);
      const Status status = group.Run([&](int64_t rank) {
        Tokens tokens = RandomTokens(layer, 3 + rank, 2, rank);
        tokens.weights = at::tensor({1.f, 16.f}).expand({3 + rank, 2}).contiguous();
        const at::Tensor out = RunOps(Shard(layer, rank, ranks), layer.Placement(ranks), tokens, ranks, "ep");
        const at::Tensor expected = tokens.ids.select(1, 0).add(tokens.ids.select(1, 1), 16).to(at::kFloat);
        TORCH_CHECK(out.equal(expected.unsqueeze(1).expand({3 + rank, 6})), "rank ", rank, ": ", out, " from ", tokens.ids);
      });
      EXPECT_TRUE(status.ok()) << status.message();
    }
  }
}

TEST_P(Ranks, ExpertsSeeExactlyTheRowsRoutedToThem) {
  constexpr int64_t kRanks = 4;
  const MoeLayer layer = RandomLayer({.shuffled = true});
  const std::vector<Tokens> tokens = EachItsOwn(layer, kRanks, 3);
  LocalGroup group("ep", kRanks);
  const Status status = group.Run([&](int64_t rank) {
    const ops::Recorder recorder;
    RunOps(Shard(layer, rank, kRanks), layer.Placement(kRanks), tokens[rank], kRanks, "");
    int64_t expected = 0;
    for (const Tokens& theirs : tokens) {
      for (const int64_t expert : layer.ExpertsOf(rank, kRanks)) expected += theirs.ids.eq(expert).sum().item<int64_t>();
    }
    TORCH_CHECK(recorder.calls().at(1).rows == expected, "rank ", rank, ": ", recorder.calls().at(1).rows, " rows, not ", expected);
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_P(Ranks, TheSameBitsEveryTime) {
  constexpr int64_t kRanks = 4;
  const MoeLayer layer = RandomLayer({.hidden = 32, .inner = 24, .type = at::kFloat});
  const std::vector<Tokens> tokens = EachItsOwn(layer, kRanks, 3);
  std::vector<std::vector<at::Tensor>> runs;
  for (int repeat = 0; repeat < 4; ++repeat) {
    runs.emplace_back(2 * kRanks);
    LocalGroup group("ep", kRanks);
    const Status status = group.Run([&](int64_t rank) {
      const MoeLayer shard = Shard(layer, rank, kRanks);
      const at::Tensor out = RunOps(shard, layer.Placement(kRanks), tokens[rank], kRanks, "ep");
      runs.back()[rank] = out;
      runs.back()[kRanks + rank] = Backward(out, shard, tokens[rank]).experts[0];
    });
    ASSERT_TRUE(status.ok()) << status.message();
    for (size_t i = 0; i < runs[0].size(); ++i) EXPECT_TRUE(runs.back()[i].equal(runs[0][i])) << i;
  }
}

double Apart(const at::Tensor& one, const at::Tensor& other) {
  return at::linalg_norm(one.to(at::kDouble).sub(other)).item<double>() / at::linalg_norm(other.to(at::kDouble)).item<double>();
}

// The largest relative errors of the ranks' outputs and input gradients, against fp64.
double ErrorOf(const MoeLayer& layer, const std::vector<Tokens>& tokens, int64_t ranks) {
  std::vector<double> outputs(tokens.size());
  std::vector<double> gradients(tokens.size());
  LocalGroup group("ep", ranks);
  const Status status = group.Run([&](int64_t rank) {
    // On one rank the same tokens one after the other.
    for (size_t i = ranks == 1 ? 0 : rank; i < (ranks == 1 ? tokens.size() : rank + 1); ++i) {
      const MoeLayer shard = Shard(layer, rank, ranks);
      const at::Tensor out = RunOps(shard, layer.Placement(ranks), tokens[i], ranks, "ep");
      const at::Tensor expected = Reference(layer, tokens[i]);
      const at::Tensor grad = Backward(out, shard, tokens[i]).inputs[0];
      const at::Tensor expected_grad = Backward(expected, layer, tokens[i]).inputs[0];
      outputs[i] = Apart(out, expected);
      gradients[i] = Apart(grad, expected_grad);
    }
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return *std::max_element(outputs.begin(), outputs.end()) + *std::max_element(gradients.begin(), gradients.end());
}

// A rank's part of a token's sum travels as one bf16 row: that costs little beside what the experts' own rows lose.
TEST_P(Ranks, PartsOfSumsLoseLittle) {
  for (const int64_t k : {1, 2, 6}) {
    const MoeLayer layer = RandomLayer({.hidden = 128, .inner = 64, .type = at::kBFloat16});
    for (const int64_t ranks : {2, 4}) {
      std::vector<Tokens> tokens;
      for (int64_t rank = 0; rank < ranks; ++rank) tokens.push_back(RandomTokens(layer, 48, k, rank));
      const double one = ErrorOf(layer, tokens, 1);
      const double several = ErrorOf(layer, tokens, ranks);
      EXPECT_LE(several, 1.2 * one) << ranks << " ranks, k " << k << ": " << several << " against " << one;
    }
  }
}

}  // namespace
}  // namespace autoep::testing

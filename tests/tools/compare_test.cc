// SPDX-License-Identifier: Apache-2.0
// Comparison of runs: what counts as equal, as a flip, and as a failure.
#include "tools/compare.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace autoep {
namespace {

using testing::HasSubstr;

constexpr int64_t kTokens = 40;
const Tolerance kFp32 = Tolerance::For(at::kFloat);

// 40 tokens, two choices of 8 experts with weights 0.7 and 0.3, two layers, one output of 4 columns. All outputs are 1 but
// one of 10, the largest.
RunRecord Record() {
  RunRecord record;
  for (const char* layer : {"layers.0.mlp", "layers.1.mlp"}) {
    at::Tensor ids = at::zeros({kTokens, 2}, at::kLong);
    ids.select(1, 1).fill_(3);
    at::Tensor weights = at::full({kTokens, 2}, 0.7);
    weights.select(1, 1).fill_(0.3);
    record.routes.push_back({layer, ids, weights});
  }
  at::Tensor output = at::full({4, 10, 4}, 1.0);
  output[0][0][0] = 10;
  record.outputs.emplace_back("0", output);
  return record;
}

// The second choice of `token` in `layer` becomes expert 5 with `weight`.
void Reroute(RunRecord* record, size_t layer, int64_t token, double weight) {
  record->routes[layer].ids[token][1] = 5;
  record->routes[layer].weights[token][1] = weight;
}

void SetOutput(RunRecord* record, int64_t token, double value) { record->outputs[0].second.view({kTokens, 4})[token][2] = value; }

Comparison CompareWith(const RunRecord& converted, int64_t sequence = 10) { return Compare(Record(), converted, sequence, kFp32); }

TEST(Compare, EqualRuns) {
  const Comparison same = CompareWith(Record());
  EXPECT_EQ(same.failure, "");
  EXPECT_EQ(same.tokens, kTokens);
  EXPECT_EQ(same.flips, 0);
  EXPECT_EQ(same.max_error, 0);
}

TEST(Compare, OrderOfChoicesDoesNotMatter) {
  RunRecord other = Record();
  other.routes[0].ids = other.routes[0].ids.flip({1});
  other.routes[0].weights = other.routes[0].weights.flip({1});
  EXPECT_EQ(CompareWith(other).failure, "");
  EXPECT_EQ(CompareWith(other).flips, 0);
}

TEST(Compare, ErrorIsRelativeToTheLargestOutput) {
  RunRecord other = Record();
  SetOutput(&other, 7, 1.001);
  EXPECT_EQ(CompareWith(other).failure, "");
  EXPECT_NEAR(CompareWith(other).max_error, 1e-4, 1e-6);
  SetOutput(&other, 7, 1.003);
  EXPECT_THAT(CompareWith(other).failure, HasSubstr("0 of token 7 differs by 0.0003"));
}

TEST(Compare, LabelsOfTheConvertedModelCarryADigest) {
  RunRecord other = Record();
  for (LayerRoute& route : other.routes) route.layer += "#abc";
  EXPECT_EQ(CompareWith(other).failure, "");
  other.routes[1].layer = "layers.7.mlp#abc";
  EXPECT_THAT(CompareWith(other).failure, HasSubstr("layers.1.mlp where the converted model runs layers.7.mlp"));
}

TEST(Compare, NearTieIsAFlipAndFreesItsSequence) {
  RunRecord other = Record();
  Reroute(&other, 0, 12, 0.3001);
  Reroute(&other, 1, 15, 0.1);  // a consequence: the same sequence, a later layer
  SetOutput(&other, 12, 5);
  SetOutput(&other, 18, 2);
  const Comparison flip = CompareWith(other);
  EXPECT_EQ(flip.failure, "");
  EXPECT_EQ(flip.flips, 1);
  EXPECT_EQ(flip.after_flips, 9);
  EXPECT_EQ(flip.exempt_over, 1);  // not the flipped token itself
  EXPECT_EQ(flip.max_error, 0);
}

TEST(Compare, OtherSequencesAreHeldToTheToleranceAfterAFlip) {
  RunRecord other = Record();
  Reroute(&other, 0, 12, 0.3001);
  SetOutput(&other, 22, 2);
  EXPECT_THAT(CompareWith(other).failure, HasSubstr("of token 22"));
}

TEST(Compare, AllTokensMayShareOneSequence) {
  RunRecord other = Record();
  Reroute(&other, 0, 12, 0.3001);
  SetOutput(&other, 39, 2);
  const Comparison flip = CompareWith(other, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(flip.failure, "");
  EXPECT_EQ(flip.after_flips, kTokens - 1);
}

TEST(Compare, AnotherExpertOfAnotherWeightIsNoTie) {
  RunRecord other = Record();
  Reroute(&other, 1, 12, 0.2);
  const Comparison wrong = CompareWith(other);
  EXPECT_THAT(wrong.failure,
              HasSubstr("layers.1.mlp: token 12 goes to experts 0 (0.7) and 3 (0.3) in the source and to 0 (0.7) and 5 (0.2)"));
  EXPECT_EQ(wrong.first_layer, "layers.1.mlp");
}

TEST(Compare, AnotherExpertWithoutWeightsIsNoTie) {
  RunRecord other = Record();
  Reroute(&other, 0, 1, 0.3);
  other.routes[0].weights = at::Tensor();
  EXPECT_THAT(CompareWith(other).failure, HasSubstr("no near tie"));
}

TEST(Compare, WeightsThatDifferNameTheLayer) {
  RunRecord other = Record();
  other.routes[1].weights[3][0] = 0.6;
  SetOutput(&other, 3, 4);
  const Comparison wrong = CompareWith(other);
  EXPECT_THAT(wrong.failure, HasSubstr("of token 3"));
  EXPECT_EQ(wrong.first_layer, "layers.1.mlp");
}

TEST(Compare, NotANumberOnOneSideFails) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  RunRecord other = Record();
  SetOutput(&other, 9, nan);
  EXPECT_THAT(CompareWith(other).failure, HasSubstr("of token 9 differs by inf"));
  RunRecord source = Record();
  SetOutput(&source, 9, nan);
  EXPECT_EQ(Compare(source, other, 10, kFp32).failure, "");
}

TEST(Compare, WholeNumbersAreComparedExactly) {
  RunRecord source = Record();
  source.outputs.emplace_back("1", at::full({kTokens}, 1000, at::kLong));
  RunRecord other = Record();
  other.outputs.emplace_back("1", at::full({kTokens}, 1000, at::kLong));
  EXPECT_EQ(Compare(source, other, 10, kFp32).failure, "");
  other.outputs[1].second[5] = 1001;
  EXPECT_THAT(Compare(source, other, 10, kFp32).failure, HasSubstr("1 of token 5"));
}

TEST(Compare, ShapesAndCountsMustAgree) {
  RunRecord fewer = Record();
  fewer.routes.pop_back();
  EXPECT_THAT(CompareWith(fewer).failure, HasSubstr("ran 2 MoE layers and the converted model 1"));
  RunRecord shape = Record();
  shape.outputs[0].second = shape.outputs[0].second.view({kTokens, 4});
  EXPECT_THAT(CompareWith(shape).failure, HasSubstr("4x10x4"));
  RunRecord dtype = Record();
  dtype.outputs[0].second = dtype.outputs[0].second.to(at::kBFloat16);
  EXPECT_THAT(CompareWith(dtype).failure, HasSubstr("BFloat16"));
  RunRecord none = Record();
  none.outputs.clear();
  EXPECT_THAT(CompareWith(none).failure, HasSubstr("1 outputs"));
}

TEST(Compare, AnOutputWithoutTokensIsTakenAsAWhole) {
  RunRecord source = Record();
  source.outputs = {{"0", at::full({3}, 1.0)}};
  RunRecord other = source;
  other.outputs = {{"0", at::full({3}, 1.1)}};
  EXPECT_THAT(Compare(source, other, 10, kFp32).failure, HasSubstr("0 differs by 0.1"));
}

TEST(Tolerances, NarrowDtypesHaveMore) {
  EXPECT_EQ(Tolerance::For(at::kFloat).output, 2e-4);
  EXPECT_EQ(Tolerance::For(at::kDouble).output, 2e-4);
  EXPECT_EQ(Tolerance::For(at::kBFloat16).output, 2e-2);
  EXPECT_EQ(Tolerance::For(at::kHalf).output, 2e-2);
}

// Two ranks with experts 0-3 and 4-7; each token of `Record` takes experts 0 and 3, both of rank 0.
contract::Manifest TwoRanks() {
  contract::Manifest manifest;
  manifest.ep_size = 2;
  for (const char* label : {"layers.0.mlp", "layers.1.mlp"}) {
    contract::ManifestLayer layer;
    layer.label = label;
    for (int64_t expert = 0; expert < 8; ++expert) layer.placement.push_back({expert / 4, expert % 4});
    manifest.layers.push_back(layer);
  }
  return manifest;
}

TEST(CheckRows, RowsAreWhatTheRoutesSend) {
  std::vector<RunRecord> ranks = {Record(), Record()};
  ranks[1].routes[1].ids.select(1, 1).fill_(5);
  ranks[0].rows = {{"layers.0.mlp", 4 * kTokens}, {"layers.1.mlp", 3 * kTokens}};
  ranks[1].rows = {{"layers.0.mlp", 0}, {"layers.1.mlp", kTokens}};
  EXPECT_TRUE(CheckRows(ranks, TwoRanks()).ok());
  ranks[1].rows[1].rows = 4 * kTokens;  // a dense form would process every row
  const Status dense = CheckRows(ranks, TwoRanks());
  EXPECT_EQ(dense.code(), Code::kVerify);
  EXPECT_THAT(dense.message(),
              HasSubstr("layers.1.mlp: the experts of rank 1 processed 160 rows, and the routes of all ranks send it 40"));
  ranks[1].rows.clear();
  EXPECT_FALSE(CheckRows(ranks, TwoRanks()).ok());
}

}  // namespace
}  // namespace autoep

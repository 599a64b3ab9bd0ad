// SPDX-License-Identifier: Apache-2.0
// The ops on one rank against plain torch ops in fp64: every dtype and activation, forward and backward, edge routing; what
// dispatch returns; repeatability.
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "plugin/contract/schemas.h"
#include "plugin/ops/recorder.h"
#include "tests/plugin/ops/moe_layer.h"

namespace autoep::testing {
namespace {

// The output, and every gradient, weights included.
void CheckOneRank(const MoeLayer& layer, const Tokens& tokens) {
  const Gradients actual = CheckRank(layer, tokens, 0, 1, "");
  const Gradients expected = Backward(Reference(layer, tokens), layer, tokens);
  for (size_t i = 0; i < expected.experts.size(); ++i) {
    const at::Tensor by_slot = expected.experts[i].index_select(0, at::tensor(layer.ExpertsOf(0, 1)));
    CheckClose(actual.experts[i], by_slot, layer.options.type, c10::str("gradient of weight ", i));
  }
}

struct ActivationCase {
  std::string name;
  std::vector<double> args = {};
};

TEST(OneRank, EveryActivationAndDtype) {
  const std::vector<ActivationCase> activations = {{"silu_gated"},
                                                   {"gelu_gated"},
                                                   {"gelu_tanh_gated"},
                                                   {"relu_gated"},
                                                   {"silu"},
                                                   {"gelu"},
                                                   {"gelu_tanh"},
                                                   {"relu"},
                                                   {"relu_squared"},
                                                   {"clamped_swiglu", {1.702, 0.7}},
                                                   {"limited_swiglu", {1.0, 0.7}}};
  for (const ActivationCase& activation : activations) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
      for (const bool biases : {false, true}) {
        SCOPED_TRACE(c10::str(activation.name, " ", type, " biases ", biases));
        const MoeLayer layer =
            RandomLayer({.type = type, .activation = activation.name, .activation_args = activation.args, .biases = biases});
        EXPECT_NO_THROW(CheckOneRank(layer, RandomTokens(layer, 9, 2, 1)));
      }
    }
  }
}

TEST(OneRank, ScaleOnTheWayInAndNoWeights) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
    SCOPED_TRACE(c10::str(type));
    const MoeLayer layer = RandomLayer({.type = type, .shuffled = true});
    Tokens tokens = RandomTokens(layer, 9, 3, 1, /*scaled=*/true);
    EXPECT_NO_THROW(CheckOneRank(layer, tokens));
    tokens.weights.reset();
    EXPECT_NO_THROW(CheckOneRank(layer, tokens));
  }
}

TEST(OneRank, EdgeRouting) {
  const MoeLayer layer = RandomLayer({.biases = true, .shuffled = true});
  const auto ids = [](at::IntArrayRef values, int64_t k) { return at::tensor(values, at::kLong).view({-1, k}); };
  EXPECT_NO_THROW(CheckOneRank(layer, RandomTokens(layer, 0, 2, 1))) << "no token";
  EXPECT_NO_THROW(CheckOneRank(layer, RandomTokens(layer, 1, 1, 1))) << "one token";
  EXPECT_NO_THROW(CheckOneRank(layer, RandomTokens(layer, 5, 8, 1))) << "k is the number of experts";
  EXPECT_NO_THROW(CheckOneRank(layer, TokensFor(layer, at::full({7, 1}, 3, at::kLong), 1))) << "all to one expert";
  EXPECT_NO_THROW(CheckOneRank(layer, TokensFor(layer, ids({1, 6, 6, 1, 1, 6}, 2), 1))) << "most experts have none";
  EXPECT_NO_THROW(CheckOneRank(layer, TokensFor(layer, ids({4, 4, 0, 4}, 2), 1))) << "a token chooses an expert twice";
}

// Many rows an expert: the other way of using threads; several chunks of the sort; many panels of a bf16 weight.
TEST(OneRank, LargeLayers) {
  const MoeLayer layer = RandomLayer({.experts = 4, .type = at::kFloat});
  EXPECT_NO_THROW(CheckOneRank(layer, RandomTokens(layer, 30000, 2, 1)));
  const MoeLayer wide = RandomLayer({.experts = 2, .hidden = 1500, .inner = 800, .type = at::kBFloat16});
  EXPECT_NO_THROW(CheckRank(wide, RandomTokens(wide, 3, 1, 1), 0, 1, ""));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> Dispatch(const at::Tensor& x, const at::Tensor& ids,
                                                                                const at::Tensor& placement) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("autoep::dispatch", "");
  c10::Stack stack = {x, ids, c10::IValue(), placement, int64_t{1}, "", "l#p", contract::kOpAbi};
  op.callBoxed(stack);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor(), stack[4].toTensor()};
}

TEST(OneRank, DispatchReturnsWhatTheSchemaSays) {
  const at::Tensor x = at::tensor({10.0, 11.0, 12.0}).view({3, 1});
  const at::Tensor ids = at::tensor({2, 0, 0, 1, 2, 0}, at::kLong).view({3, 2});
  // Expert 0 in slot 1, 1 in slot 3, 2 in slot 0, 3 in slot 2.
  const at::Tensor placement = at::tensor({0, 1, 0, 3, 0, 0, 0, 2}, at::kLong).view({4, 1, 2});
  const auto [rows, offsets, counts, order, received] = Dispatch(x, ids, placement);
  EXPECT_TRUE(rows.equal(at::tensor({10.0, 12.0, 10.0, 11.0, 12.0, 11.0}).view({6, 1}))) << rows;
  EXPECT_TRUE(offsets.equal(at::tensor({2, 5, 5, 6}, at::kInt))) << offsets;
  EXPECT_TRUE(counts.equal(at::tensor({3, 1, 2, 0}, at::kLong))) << counts;
  EXPECT_TRUE(order.equal(at::tensor({0, 2, 3, 5, 1, 4}, at::kLong).view({3, 2}))) << order;
  EXPECT_TRUE(received.equal(at::tensor({2, 3, 0, 1}, at::kLong).view({1, 4}))) << received;
}

TEST(OneRank, CombineKeepsTheWiderDtype) {
  const MoeLayer layer = RandomLayer({.type = at::kBFloat16});
  Tokens tokens = RandomTokens(layer, 4, 2, 1);
  EXPECT_EQ(RunOps(layer, layer.Placement(1), tokens, 1, "").scalar_type(), at::kFloat);
  tokens.weights = tokens.weights->detach().to(at::kBFloat16);
  EXPECT_EQ(RunOps(layer, layer.Placement(1), tokens, 1, "").scalar_type(), at::kBFloat16);
  tokens.weights = tokens.weights->to(at::kHalf);
  EXPECT_EQ(RunOps(layer, layer.Placement(1), tokens, 1, "").scalar_type(), at::kFloat);
  tokens.weights.reset();
  EXPECT_EQ(RunOps(layer, layer.Placement(1), tokens, 1, "").scalar_type(), at::kBFloat16);
}

TEST(OneRank, TheSameBitsEveryTime) {
  const MoeLayer layer = RandomLayer({.hidden = 64, .inner = 48, .type = at::kFloat});
  const Tokens tokens = RandomTokens(layer, 300, 4, 1);
  const auto run = [&] {
    const at::Tensor out = RunOps(layer, layer.Placement(1), tokens, 1, "");
    const Gradients grads = Backward(out, layer, tokens);
    return std::vector<at::Tensor>{out, grads.inputs[0], grads.inputs[1], grads.experts[0], grads.experts[1]};
  };
  const std::vector<at::Tensor> first = run();
  for (int repeat = 0; repeat < 5; ++repeat) {
    const std::vector<at::Tensor> again = run();
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(again[i].equal(first[i])) << i;
  }
}

TEST(Recorder, SeesRoutesAndRows) {
  const MoeLayer layer = RandomLayer({});
  const Tokens tokens = RandomTokens(layer, 5, 2, 1);
  const ops::Recorder recorder;
  RunOps(layer, layer.Placement(1), tokens, 1, "", "a.b#c");
  using Op = ops::RecordedCall::Op;
  ASSERT_THAT(recorder.calls(), ::testing::SizeIs(3));
  EXPECT_EQ(recorder.calls()[0].op, Op::kDispatch);
  EXPECT_EQ(recorder.calls()[0].layer, "a.b#c");
  EXPECT_TRUE(recorder.calls()[0].ids.equal(tokens.ids));
  EXPECT_EQ(recorder.calls()[1].op, Op::kExperts);
  EXPECT_EQ(recorder.calls()[1].rows, 10);
  EXPECT_EQ(recorder.calls()[2].op, Op::kCombine);
  EXPECT_TRUE(recorder.calls()[2].weights.equal(*tokens.weights));
}

TEST(Recorder, RecordRoutesReturnsACopyOfTheIds) {
  const at::Tensor ids = at::tensor({1, 2}, at::kLong).view({1, 2});
  const at::Tensor weights = at::tensor({0.25, 0.75}).view({1, 2}).requires_grad_(true);
  c10::Stack stack = {ids, weights, "a.b#c"};
  {
    const ops::Recorder recorder;
    c10::Dispatcher::singleton().findSchemaOrThrow("autoep::record_routes", "").callBoxed(stack);
    ASSERT_THAT(recorder.calls(), ::testing::SizeIs(1));
    EXPECT_TRUE(recorder.calls()[0].weights.equal(weights));
  }
  EXPECT_TRUE(stack[0].toTensor().equal(ids));
  EXPECT_FALSE(stack[0].toTensor().is_alias_of(ids));
}

}  // namespace
}  // namespace autoep::testing

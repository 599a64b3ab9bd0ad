// SPDX-License-Identifier: Apache-2.0
// What the ops refuse, each with a sentence that names the layer, and that a refusal on one rank reaches the others.
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "plugin/comm/local.h"
#include "plugin/contract/schemas.h"
#include "tests/plugin/ops/moe_layer.h"

namespace autoep::testing {
namespace {

using comm::LocalGroup;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kLabel[] = "model.layers.3.mlp#plan";

std::string MessageOf(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "nothing was thrown";
}

std::string Refusal(const MoeLayer& layer, const Tokens& tokens, int64_t ranks = 1) {
  return MessageOf([&] { RunOps(layer, layer.Placement(ranks), tokens, ranks, "", kLabel); });
}

TEST(Refusals, IdsOutOfRange) {
  const MoeLayer layer = RandomLayer({});
  for (const int64_t bad : {-1, 8, 1 << 20}) {
    Tokens tokens = RandomTokens(layer, 4, 2, 1);
    tokens.ids[2][1] = bad;
    EXPECT_THAT(Refusal(layer, tokens),
                AllOf(HasSubstr("'model.layers.3.mlp'"), HasSubstr(c10::str("ids holds ", bad)), HasSubstr("0 to 7")));
  }
}

TEST(Refusals, NoShardAttached) {
  for (const bool grad : {false, true}) {
    MoeLayer layer = RandomLayer({});
    layer.gate_up = at::empty({0, 10, 6}, at::kDouble).requires_grad_(grad);
    layer.down = at::empty({0, 6, 5}, at::kDouble).requires_grad_(grad);
    EXPECT_THAT(Refusal(layer, RandomTokens(layer, 4, 2, 1)),
                AllOf(HasSubstr("'model.layers.3.mlp'"), HasSubstr("no shard attached"), HasSubstr("autoep.load()")));
  }
}

TEST(Refusals, ShardOfAnotherRankCount) {
  MoeLayer layer = RandomLayer({});
  layer.gate_up = layer.gate_up.detach().narrow(0, 0, 4);
  layer.down = layer.down.detach().narrow(0, 0, 4);
  EXPECT_THAT(Refusal(layer, RandomTokens(layer, 4, 2, 1)), HasSubstr("gives this rank 8 experts, and the shard holds 4"));
}

TEST(Refusals, ShapesAndDtypes) {
  const MoeLayer layer = RandomLayer({});
  const Tokens good = RandomTokens(layer, 4, 2, 1);
  const auto with = [&](const std::function<void(MoeLayer&, Tokens&)>& change) {
    MoeLayer changed = layer;
    Tokens tokens = good;
    change(changed, tokens);
    return Refusal(changed, tokens);
  };
  EXPECT_EQ(with([](MoeLayer&, Tokens&) {}), "nothing was thrown");
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.ids = t.ids.to(at::kInt); }), HasSubstr("ids is Int"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.ids = t.ids.narrow(0, 0, 3); }), HasSubstr("x has 4 tokens, and ids 3"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.x = t.x.to(at::kLong); }), HasSubstr("x is Long"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.x = t.x.unsqueeze(0); }), HasSubstr("x has 3 dimensions"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.x = t.x.to(at::kFloat); }), HasSubstr("gate_up is Double, and the rows are Float"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.weights = t.weights->narrow(1, 0, 1); }),
              HasSubstr("weights is [4, 1], and the choices are [4, 2]"));
  EXPECT_THAT(with([](MoeLayer&, Tokens& t) { t.scale = t.weights->to(at::kLong); }), HasSubstr("scale is Long"));
  EXPECT_THAT(with([](MoeLayer& l, Tokens&) { l.down = l.down.narrow(1, 0, 5); }), HasSubstr("down is [8, 5, 5], and [8, 6, 5]"));
  EXPECT_THAT(with([](MoeLayer& l, Tokens&) { l.gate_up = l.gate_up.narrow(1, 0, 9); }), HasSubstr("gate_up is [8, 9, 6]"));
  EXPECT_THAT(with([](MoeLayer& l, Tokens&) { l.gate_up_bias = l.down.select(2, 0); }), HasSubstr("gate_up_bias is [8, 6]"));
  EXPECT_THAT(with([](MoeLayer& l, Tokens&) { l.options.activation = "snake"; }), HasSubstr("activation 'snake' is not known"));
  EXPECT_THAT(with([](MoeLayer& l, Tokens&) { l.options.activation_args = {1.0}; }), HasSubstr("takes 0 numbers, and 1 are given"));
}

TEST(Refusals, AnotherAbi) {
  const MoeLayer layer = RandomLayer({});
  const Tokens tokens = RandomTokens(layer, 4, 2, 1);
  c10::Stack stack = {tokens.x, tokens.ids, c10::IValue(), layer.Placement(1), int64_t{1}, "", kLabel, contract::kOpAbi + 1};
  EXPECT_THAT(MessageOf([&] { c10::Dispatcher::singleton().findSchemaOrThrow("autoep::dispatch", "").callBoxed(stack); }),
              AllOf(HasSubstr("op ABI 2"), HasSubstr("convert the model again")));
}

TEST(Refusals, PlacementsThatAreNone) {
  const MoeLayer layer = RandomLayer({});
  const Tokens tokens = RandomTokens(layer, 4, 2, 1);
  at::Tensor placement = layer.Placement(1);
  placement[3][0][1] = 2;
  EXPECT_THAT(MessageOf([&] { RunOps(layer, placement, tokens, 1, "", kLabel); }),
              HasSubstr("experts 2 and 3 are both placed on rank 0, slot 2"));
  EXPECT_THAT(MessageOf([&] { RunOps(layer, layer.Placement(1), tokens, 3, "", kLabel); }),
              HasSubstr("8 experts, which 3 ranks cannot hold"));
}

TEST(Refusals, NoGroup) {
  const MoeLayer layer = RandomLayer({});
  EXPECT_THAT(Refusal(layer, RandomTokens(layer, 4, 2, 1), 2),
              AllOf(HasSubstr("'model.layers.3.mlp'"), HasSubstr("no default process group")));
}

// Each rank's message, when `run` is called on every rank.
std::vector<std::string> MessagesOf(int64_t ranks, const std::function<void(int64_t)>& run) {
  std::vector<std::string> messages(ranks);
  LocalGroup group("ep", ranks);
  EXPECT_TRUE(group.Run([&](int64_t rank) { messages[rank] = MessageOf([&] { run(rank); }); }).ok());
  return messages;
}

TEST(Refusals, BadIdsOnOneRankFailAllRanks) {
  const MoeLayer layer = RandomLayer({});
  EXPECT_THAT(MessagesOf(2,
                         [&](int64_t rank) {
                           Tokens tokens = RandomTokens(layer, 4, 2, rank);
                           if (rank == 1) tokens.ids[0][0] = 99;
                           RunOps(Shard(layer, rank, 2), layer.Placement(2), tokens, 2, "ep", kLabel);
                         }),
              ElementsAre(HasSubstr("rank 1 of the group failed here"), HasSubstr("ids holds 99")));
}

TEST(Refusals, RanksInDifferentLayersFailAllRanks) {
  const MoeLayer layer = RandomLayer({});
  EXPECT_THAT(MessagesOf(4,
                         [&](int64_t rank) {
                           const std::string label = c10::str("model.layers.", rank == 2 ? 1 : 0, ".mlp#plan");
                           RunOps(Shard(layer, rank, 4), layer.Placement(4), RandomTokens(layer, 4, 2, rank), 4, "ep", label);
                         }),
              Each(HasSubstr("is in another call than rank")));
}

TEST(Refusals, RanksOfDifferentDtypesFailAllRanks) {
  const MoeLayer wide = RandomLayer({});
  const MoeLayer narrow = RandomLayer({.type = at::kFloat});
  EXPECT_THAT(MessagesOf(2,
                         [&](int64_t rank) {
                           const MoeLayer& layer = rank == 0 ? wide : narrow;
                           RunOps(Shard(layer, rank, 2), layer.Placement(2), RandomTokens(layer, 4, 2, rank), 2, "ep", kLabel);
                         }),
              Each(HasSubstr("inputs of one dtype")));
}

}  // namespace
}  // namespace autoep::testing

// SPDX-License-Identifier: Apache-2.0
// moe on a GPU against plain ops in fp64: sizes that fill no tile, edge routing, memory that was poisoned before, repeatability,
// and ids that are no expert's. Where there is no GPU each test says so and is skipped.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "plugin/contract/schemas.h"
#include "tests/plugin/ops/moe_layer.h"

namespace autoep::testing {
namespace {

class Gpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::globalContext().hasCUDA() || at::detail::getCUDAHooks().deviceCount() == 0) GTEST_SKIP() << "there is no GPU here";
  }
};

at::Tensor OnGpu(const at::Tensor& tensor) { return tensor.detach().to(at::kCUDA); }

std::optional<at::Tensor> OnGpu(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(OnGpu(*tensor)) : std::nullopt;
}

at::Tensor RunMoe(const MoeLayer& layer, const Tokens& tokens) {
  const MoeLayer shard = Shard(layer, 0, 1);  // its experts in the order of their slots
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("autoep::moe", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, std::string, at::ArrayRef<double>,
                            std::optional<at::ScalarType>, std::string, int64_t)>();
  return op.call(OnGpu(tokens.x), OnGpu(tokens.ids), OnGpu(tokens.weights), std::nullopt, OnGpu(layer.Placement(1)),
                 OnGpu(shard.gate_up), OnGpu(shard.down), OnGpu(shard.gate_up_bias), OnGpu(shard.down_bias),
                 layer.options.activation, layer.options.activation_args, layer.options.type, "model.layers.0.mlp#plan",
                 contract::kOpAbi);
}

// What the allocator gives out next holds NaN.
void Poison() { at::full({1 << 26}, std::numeric_limits<float>::quiet_NaN(), at::TensorOptions(at::kCUDA)); }

void CheckMoe(const LayerOptions& options, const at::Tensor& ids) {
  const MoeLayer layer = RandomLayer(options);
  const Tokens tokens = TokensFor(layer, ids, 1);
  Poison();
  const at::Tensor out = RunMoe(layer, tokens);
  CheckClose(out.cpu(), Reference(layer, tokens).detach(), options.type, "moe");
  Poison();
  ASSERT_TRUE(at::equal(out, RunMoe(layer, tokens))) << "not the same every time";
}

at::Tensor RandomIds(int64_t tokens, int64_t experts, int64_t k) { return std::get<1>(at::rand({tokens, experts}).topk(k, 1)); }

TEST_F(Gpu, SizesThatFillNoTile) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const auto& [hidden, inner] : {std::pair(8, 8), std::pair(72, 40), std::pair(200, 136), std::pair(30, 18)}) {
      for (const int64_t tokens : {1, 9, 33, 300}) {
        SCOPED_TRACE(c10::str(type, " ", hidden, " ", inner, " ", tokens));
        CheckMoe({.experts = 5, .hidden = hidden, .inner = inner, .type = type, .biases = true, .shuffled = true},
                 RandomIds(tokens, 5, 2));
      }
    }
  }
}

// Several tiles of rows an expert, and an inner size at which rows are not gathered by the product: tiles taken from a counter by
// pairs of blocks, and written while the next are multiplied.
TEST_F(Gpu, SeveralTilesAnExpert) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    for (const auto& [hidden, inner] : {std::pair(200, 1096), std::pair(328, 1032), std::pair(72, 136)}) {
      for (const int64_t tokens : {150, 390, 700, 1500}) {
        SCOPED_TRACE(c10::str(type, " ", hidden, " ", inner, " ", tokens));
        CheckMoe({.experts = 3, .hidden = hidden, .inner = inner, .type = type, .biases = true, .shuffled = true},
                 RandomIds(tokens, 3, 2));
      }
    }
  }
}

TEST_F(Gpu, EveryActivation) {
  for (const char* activation : {"silu_gated", "gelu_gated", "gelu_tanh_gated", "relu_gated", "silu", "gelu", "gelu_tanh", "relu",
                                 "relu_squared", "clamped_swiglu", "limited_swiglu"}) {
    SCOPED_TRACE(activation);
    std::vector<double> args;
    if (std::string(activation).ends_with("ed_swiglu")) args = {1.702, 0.7};
    CheckMoe({.hidden = 64, .inner = 48, .type = at::kBFloat16, .activation = activation, .activation_args = args},
             RandomIds(50, 8, 3));
  }
}

TEST_F(Gpu, EdgeRouting) {
  const LayerOptions options = {.hidden = 64, .inner = 48, .type = at::kBFloat16, .shuffled = true};
  CheckMoe(options, at::empty({0, 2}, at::kLong));
  CheckMoe(options, RandomIds(20, 8, 8));
  CheckMoe(options, at::full({700, 1}, 7, at::kLong));
  CheckMoe(options, at::zeros({700, 1}, at::kLong));
  CheckMoe(options, at::full({3, 2}, 4, at::kLong));
}

TEST_F(Gpu, AnIdThatIsNoExpertsIsReportedByTheNextCall) {
  const MoeLayer layer = RandomLayer({.hidden = 64, .inner = 48, .type = at::kBFloat16});
  const Tokens good = TokensFor(layer, RandomIds(5, 8, 2), 1);
  Tokens bad = good;
  for (const int64_t id : {int64_t{8}, int64_t{-1}}) {
    bad.ids = good.ids.clone().fill_(id);
    RunMoe(layer, bad).cpu();
    EXPECT_THAT([&] { RunMoe(layer, good); },
                ::testing::ThrowsMessage<c10::Error>(::testing::HasSubstr(
                    c10::str("layer 'model.layers.0.mlp': in an earlier call ids held ", id, ", which is no expert's number"))));
    EXPECT_NO_THROW(RunMoe(layer, good).cpu()) << "the context lives on";
  }
}

}  // namespace
}  // namespace autoep::testing

// SPDX-License-Identifier: Apache-2.0
// moe and route.linear on a GPU against plain ops in fp64: sizes that fill no tile, edge routing, memory that was poisoned before,
// repeatability, and ids that are no expert's. Where there is no GPU each test says so and is skipped.
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

struct Routed {
  at::Tensor weights, ids;
};

// The top_k largest logits, and their softmax.
Routed RunRoute(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& gate_bias, at::ScalarType logits, int64_t top_k) {
  const auto dtype = static_cast<int64_t>(logits);
  c10::Stack stack = {
      x,     gate, gate_bias, c10::IValue(), dtype,     dtype, "none", int64_t{1},    int64_t{1}, "max",           0.0,
      top_k, true, true,      c10::IValue(), "softmax", 0.0,   1.0,    c10::IValue(), "l#p",      contract::kOpAbi};
  c10::Dispatcher::singleton().findSchemaOrThrow("autoep::route", "linear").callBoxed(stack);
  return {stack.at(0).toTensor(), stack.at(1).toTensor()};
}

struct RouteSize {
  int64_t tokens, hidden, experts, top_k;
};

// Operands whose products and sums are exact, and no two logits of a token equal, so that no order of summing decides.
void CheckRoute(const RouteSize& size, at::ScalarType type) {
  const at::Tensor x = at::randint(-2, 3, {size.tokens, size.hidden}, at::kDouble);
  const at::Tensor gate = at::randint(-2, 3, {size.experts, size.hidden}, at::kDouble);
  const at::Tensor bias = at::arange(size.experts, at::kDouble).div(2048);
  const auto on_gpu = [&](const at::Tensor& tensor) { return OnGpu(tensor).to(type); };
  ASSERT_TRUE(at::equal(on_gpu(bias).to(at::kDouble).cpu(), bias)) << "the bias is not exact";
  const Routed expected = RunRoute(x, gate, bias, at::kDouble, size.top_k);
  for (int time = 0; time < 2; ++time) {
    Poison();
    const Routed found = RunRoute(on_gpu(x), on_gpu(gate), on_gpu(bias), at::kFloat, size.top_k);
    EXPECT_TRUE(at::equal(found.ids.cpu(), expected.ids)) << found.ids.cpu().ne(expected.ids).sum().item<int64_t>() << " differ";
    EXPECT_TRUE(at::allclose(found.weights.cpu().to(at::kDouble), expected.weights, 1e-5, 1e-7));
  }
}

TEST_F(Gpu, RoutesOfEverySize) {
  const RouteSize sizes[] = {{1, 8, 3, 2},      {16, 256, 8, 2},    {17, 256, 8, 2},     {130, 1992, 37, 3},
                             {129, 64, 8, 2},   {40, 512, 128, 8},  {150, 512, 128, 8},  {33, 512, 64, 8},
                             {200, 264, 64, 8}, {20, 1024, 256, 8}, {140, 1024, 256, 8}, {70, 520, 384, 6},
                             {20, 512, 512, 8}, {1030, 64, 64, 4},  {1100, 1001, 40, 6}, {0, 64, 8, 2}};
  for (const RouteSize& size : sizes) {
    for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
      if (type == at::kBFloat16 && size.experts > 256) continue;  // their bias has more bits
      SCOPED_TRACE(c10::str(type, " ", size.tokens, " ", size.hidden, " ", size.experts));
      CheckRoute(size, type);
    }
  }
}

}  // namespace
}  // namespace autoep::testing

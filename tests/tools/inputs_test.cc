// SPDX-License-Identifier: Apache-2.0
// What is inferred of a model's arguments, the tensors made for them, and the files that hold given ones.
#include "tools/inputs.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "plugin/io/output.h"
#include "tools/inputs_file.h"
#include "tools/ranks.h"

namespace autoep {
namespace {

using testing::HasSubstr;
using torch::jit::Module;

at::Tensor Weight(std::vector<int64_t> sizes, at::ScalarType dtype = at::kFloat) { return at::rand(sizes).to(dtype); }

Module Defined(const std::string& source, const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
  Module module("m");
  for (const auto& [name, tensor] : parameters) module.register_parameter(name, tensor, /*is_buffer=*/false);
  module.define(source);
  return module;
}

InputSpec OnlySpec(const Module& module) {
  const auto specs = InferInputs(module);
  EXPECT_TRUE(specs.ok()) << specs.status().message();
  return specs.ok() && specs->size() == 1 ? specs->front() : InputSpec{};
}

// A submodule that is called as the block of a language model is.
Module Linear(at::ScalarType dtype) {
  Module linear("linear");
  linear.register_parameter("weight", Weight({32, 16}, dtype), false);
  linear.define("def forward(self, x):\n  return torch.linear(x, self.weight)\n");
  return linear;
}

TEST(InferInputs, EmbeddingTakesIdsBelowItsRows) {
  const InputSpec spec = OnlySpec(
      Defined("def forward(self, ids):\n  return torch.embedding(self.table, ids.view([-1]))\n", {{"table", Weight({50, 16})}}));
  EXPECT_EQ(spec, (InputSpec{"ids", InputKind::kTokenIds, at::kLong, 50, false}));
}

TEST(InferInputs, FirstLinearGivesDtypeAndWidthThroughCalls) {
  Module outer("outer");
  outer.register_module("gate", Linear(at::kBFloat16));
  outer.define("def forward(self, x):\n  rows = x.view([-1, x.size(-1)])\n  return self.gate.forward(rows * 2)\n");
  EXPECT_EQ(OnlySpec(outer), (InputSpec{"x", InputKind::kHidden, at::kBFloat16, 16, false}));
}

TEST(InferInputs, WhatACalleeReturnsIsFollowed) {
  Module outer("outer");
  Module drop("drop");
  drop.define("def forward(self, x):\n  return torch.dropout(x, 0.1, False)\n");
  outer.register_module("drop", drop);
  outer.register_module("gate", Linear(at::kFloat));
  outer.define("def forward(self, x):\n  return self.gate.forward(self.drop.forward(x))\n");
  EXPECT_EQ(OnlySpec(outer).size, 16);
}

TEST(InferInputs, ALinearBehindACastCountsForLess) {
  const char* source =
      "def forward(self, x):\n  logits = torch.linear(x.to(6), self.router)\n  return torch.matmul(x.relu().contiguous(), "
      "self.expert.t()), logits\n";
  const InputSpec spec = OnlySpec(Defined(source, {{"router", Weight({8, 16})}, {"expert", Weight({32, 16}, at::kHalf)}}));
  EXPECT_EQ(spec.dtype, at::kHalf);
  EXPECT_EQ(spec.size, 16);
  EXPECT_TRUE(spec.flat_first);
}

TEST(InferInputs, ABranchIsFollowed) {
  const char* source =
      "def forward(self, x):\n"
      "  y = self.w\n"
      "  if bool(self.w.sum() > 0):\n    y = x + 1\n"
      "  return torch.linear(y, self.w)\n";
  EXPECT_EQ(OnlySpec(Defined(source, {{"w", Weight({8, 24})}})).size, 24);
}

TEST(InferInputs, WhatALoopMakesIsFollowed) {
  const char* source =
      "def forward(self, x):\n"
      "  y = self.w\n"
      "  for i in range(2):\n    y = x + i\n"
      "  return torch.linear(y, self.w)\n";
  EXPECT_EQ(OnlySpec(Defined(source, {{"w", Weight({8, 24})}})).size, 24);
}

TEST(InferInputs, WhatALoopCarriesIsFollowed) {
  const char* source =
      "def forward(self, x):\n"
      "  y = x\n"
      "  for i in range(2):\n    y = torch.linear(y, self.w)\n"
      "  return y.sum()\n";
  EXPECT_EQ(OnlySpec(Defined(source, {{"w", Weight({24, 24})}})).size, 24);
}

TEST(InferInputs, MaskAndPositions) {
  const char* source =
      "def forward(self, ids, mask, positions):\n"
      "  h = torch.embedding(self.table, ids)\n"
      "  angles = torch.matmul(self.freq, positions.unsqueeze(1).to(6))\n"
      "  h = h * torch.cos(angles).transpose(1, 2) + torch.sin(angles).transpose(1, 2)\n"
      "  scores = torch.matmul(h, h.transpose(1, 2)).unsqueeze(1) + mask[:, :, :, :8]\n"
      "  return torch.softmax(scores, -1)\n";
  const auto specs = InferInputs(Defined(source, {{"table", Weight({50, 4})}, {"freq", Weight({4, 1})}}));
  ASSERT_TRUE(specs.ok()) << specs.status().message();
  ASSERT_EQ(specs->size(), 3u);
  EXPECT_EQ((*specs)[0].kind, InputKind::kTokenIds);
  EXPECT_EQ((*specs)[1].kind, InputKind::kMask);
  EXPECT_EQ((*specs)[1].dtype, at::kFloat);
  EXPECT_EQ((*specs)[2].kind, InputKind::kPositions);
}

TEST(InferInputs, ArgumentsWithDefaultsAreLeftOut) {
  EXPECT_EQ(OnlySpec(Defined("def forward(self, x, scale: float = 1.0):\n  return torch.linear(x, self.w) * scale\n",
                             {{"w", Weight({8, 24})}}))
                .name,
            "x");
}

TEST(InferInputs, AnArgumentThatTellsNothingIsAUsageError) {
  const auto specs = InferInputs(
      Defined("def forward(self, x, mystery):\n  return torch.linear(x, self.w) + mystery\n", {{"w", Weight({8, 24})}}));
  ASSERT_FALSE(specs.ok());
  EXPECT_EQ(specs.status().code(), Code::kUsage);
  EXPECT_THAT(specs.status().message(), HasSubstr("'mystery'"));
  EXPECT_THAT(specs.status().message(), HasSubstr("--inputs"));
}

TEST(MakeInputs, SeedDecides) {
  const std::vector<InputSpec> specs = {{"ids", InputKind::kTokenIds, at::kLong, 7, false},
                                        {"x", InputKind::kHidden, at::kBFloat16, 16, false}};
  const NamedTensors first = MakeInputs(specs, {2, 12, false}, 1);
  const NamedTensors again = MakeInputs(specs, {2, 12, false}, 1);
  const NamedTensors other = MakeInputs(specs, {2, 12, false}, 2);
  EXPECT_TRUE(at::equal(first[0].second, again[0].second));
  EXPECT_TRUE(at::equal(first[1].second, again[1].second));
  EXPECT_FALSE(at::equal(first[0].second, other[0].second));
  EXPECT_GE(first[0].second.min().item<int64_t>(), 0);
  EXPECT_LT(first[0].second.max().item<int64_t>(), 7);
  EXPECT_EQ(first[1].second.sizes(), at::IntArrayRef({2, 12, 16}));
  EXPECT_EQ(MakeInputs(specs, {2, 12, true}, 1)[1].second.sizes(), at::IntArrayRef({24, 16}));
}

TEST(MakeInputs, MaskIsCausal) {
  const at::Tensor mask = MakeInputs({{"m", InputKind::kMask, at::kBFloat16, 0, false}}, {2, 3, false}, 1)[0].second;
  EXPECT_EQ(mask.sizes(), at::IntArrayRef({2, 1, 3, 3}));
  EXPECT_EQ(mask[0][0][1][1].item<float>(), 0);
  EXPECT_EQ(mask[0][0][2][0].item<float>(), 0);
  EXPECT_LT(mask[1][0][1][2].item<float>(), -1e38);
}

TEST(OrderInputs, NamesAreChecked) {
  const Module module = Defined("def forward(self, a, b, c: int = 1):\n  return a + b\n", {});
  const ArgumentNames arguments = ArgumentsOf(module);
  const at::Tensor one = at::rand({1});
  const auto ordered = OrderInputs({{"b", one}, {"a", one}}, arguments, "file");
  ASSERT_TRUE(ordered.ok());
  EXPECT_EQ((*ordered)[0].first, "a");
  const auto missing = OrderInputs({{"a", one}}, arguments, "file");
  EXPECT_EQ(missing.status().code(), Code::kUsage);
  EXPECT_THAT(missing.status().message(), HasSubstr("'b'"));
  const auto unknown = OrderInputs({{"a", one}, {"b", one}, {"d", one}}, arguments, "file");
  EXPECT_THAT(unknown.status().message(), HasSubstr("no argument 'd'; its arguments are a, b and c"));
}

TEST(RankPath, EveryMarkIsReplaced) {
  EXPECT_EQ(RankPath("in-{rank}/{rank}.st", 12), "in-12/12.st");
  EXPECT_EQ(RankPath("in.st", 12), "in.st");
}

TEST(TensorFile, RoundTripOfEveryDtype) {
  const auto folder = TempFolder::Create();
  TensorFile file;
  for (const at::ScalarType dtype :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kByte, at::kBool}) {
    file.tensors.emplace_back(c10::toString(dtype), at::rand({2, 3}).mul(9).to(dtype));
  }
  file.tensors.emplace_back("empty", at::rand({0, 5}));
  file.metadata["key"] = "value";
  ASSERT_TRUE(WriteTensorsTo((*folder)->File("t"), file).ok());
  const auto read = ReadTensors((*folder)->File("t"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->metadata.at("key"), "value");
  EXPECT_EQ(read->tensors.size(), file.tensors.size());
  for (const auto& [name, tensor] : file.tensors) {
    const auto found =
        std::find_if(read->tensors.begin(), read->tensors.end(), [&](const auto& other) { return other.first == name; });
    ASSERT_NE(found, read->tensors.end()) << name;
    EXPECT_EQ(found->second.scalar_type(), tensor.scalar_type());
    EXPECT_TRUE(at::equal(found->second, tensor)) << name;
  }
}

TEST(TensorFile, AComplexTensorHasNoName) {
  TensorFile file;
  file.tensors.emplace_back("z", at::rand({2}).to(at::kComplexFloat));
  const Status status = WriteTensors(file, [](const void*, size_t) { return Status(); });
  EXPECT_EQ(status.code(), Code::kUsage);
  EXPECT_THAT(status.message(), HasSubstr("'z'"));
}

}  // namespace
}  // namespace autoep

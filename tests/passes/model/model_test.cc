// SPDX-License-Identifier: Apache-2.0
// Opening archives over a mapping, and writing them: nothing is copied, damage is found, names leave no trace.
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <filesystem>
#include <fstream>

#include "passes/model/modules.h"
#include "passes/model/moe_model.h"
#include "passes/model/tensors.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using testing::MakeBlock;
using testing::MakeStack;
using testing::Save;
using testing::TempFolder;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void FlipByte(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

uint64_t OffsetOf(const std::string& path, const std::string& record) { return ZipDirectory::Open(path)->Find(record)->offset; }

TEST(OpenModelTest, MapsTensorsAndGivesTheSameAnswers) {
  const torch::jit::Module block = MakeBlock({});
  auto model = OpenModel(Save(block, TempFolder("in")));
  ASSERT_TRUE(model.ok()) << model.status().message();
  for (const NamedTensor& named : AttributeTensors(model->module)) {
    EXPECT_NE(model->archive->RecordAt(named.tensor.const_data_ptr()), nullptr) << named.name;
  }
  const at::Tensor x = testing::Tokens({}, 5);
  EXPECT_TRUE(at::equal(model->module.forward({x}).toTensor(), torch::jit::Module(block).forward({x}).toTensor()));
}

// As files are that somebody inlined: the graph does all, and the submodules' methods are still there.
TEST(OpenModelTest, LeavesOutMethodsThatAnInlinedGraphDoesNotCall) {
  const torch::jit::Module stack = MakeStack({}, {.seed = 2}, /*share_type=*/false);
  const std::string folder = TempFolder("in");
  const auto whole = OpenModel(Save(stack, folder, "whole.pt"));
  ASSERT_TRUE(whole.ok());
  EXPECT_TRUE(whole->module.attr("first").toModule().find_method("forward"));
  torch::jit::Inline(*stack.get_method("forward").graph());
  const auto inlined = OpenModel(Save(stack, folder, "inlined.pt"));
  ASSERT_TRUE(inlined.ok());
  EXPECT_FALSE(inlined->module.attr("first").toModule().find_method("forward"));
  const at::Tensor x = testing::Tokens({}, 5);
  torch::jit::Module before = whole->module, after = inlined->module;
  EXPECT_TRUE(at::equal(before.forward({x}).toTensor(), after.forward({x}).toTensor()));
}

TEST(OpenModelTest, NamesTensors) {
  const auto model = OpenModel(Save(MakeBlock({.experts = 2}), TempFolder("in")));
  std::vector<std::string> names;
  for (const NamedTensor& named : AttributeTensors(model->module)) names.push_back(named.name);
  EXPECT_THAT(names, ::testing::ElementsAre("gate", "experts.e0.w1", "experts.e0.w3", "experts.e0.w2", "experts.e1.w1",
                                            "experts.e1.w3", "experts.e1.w2"));
}

TEST(OpenModelTest, NamesTheConstantsOfAFrozenModel) {
  torch::jit::Module block = MakeBlock({});
  block.eval();
  const auto model = OpenModel(Save(torch::jit::freeze_module(block), TempFolder("in")));
  ASSERT_TRUE(model.ok()) << model.status().message();
  const SourceTensors source(*model);
  int named = 0;
  for (const at::Tensor& constant : GraphConstants(model->module)) {
    if (constant.dim() != 2) continue;
    const auto name = source.ConstantName(constant);
    ASSERT_TRUE(name.has_value());
    EXPECT_TRUE(at::equal(*source.Find(*name), constant));
    ++named;
  }
  EXPECT_EQ(named, 13);
}

TEST(OpenModelTest, KnowsTheAuthorsLines) {
  torch::jit::Module module("M");
  module.define("def forward(self, x):\n    return torch.relu(x)\n");
  const auto model = OpenModel(Save(module, TempFolder("in")));
  std::string text;
  ForEachNode(torch::jit::toGraphFunction(model->module.get_method("forward").function()).graph()->block(),
              [&](torch::jit::Node* node) {
                if (const auto range = node->sourceRange().findSourceRangeThatGenerated())
                  text += range->source()->text_str().str();
              });
  EXPECT_THAT(text, HasSubstr("def forward(self, x):"));
}

TEST(OpenModelTest, FindsAFlippedBitOfATensorWhenItIsAsked) {
  const std::string path = Save(MakeBlock({}), TempFolder("in"));
  FlipByte(path, OffsetOf(path, "data/0"));
  const auto model = OpenModel(path);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const char* bytes = model->archive->zip().Packed(*model->archive->zip().Find("data/0")).data();
  EXPECT_EQ(model->archive->CheckTensorRecord(bytes).code(), Code::kInput);
  EXPECT_EQ(model->archive->CheckAllRecords().code(), Code::kInput);
}

TEST(OpenModelTest, FindsAFlippedBitOfThePickleAtOnce) {
  const std::string path = Save(MakeBlock({}), TempFolder("in"));
  FlipByte(path, OffsetOf(path, "data.pkl") + 20);
  EXPECT_EQ(OpenModel(path).status().code(), Code::kInput);
}

TEST(OpenModelTest, RefusesATensorBeyondItsStorage) {
  torch::jit::Module module("M");
  at::Tensor tensor = at::zeros({4});
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(std::vector<int64_t>{4096});
  module.register_buffer("big", tensor);
  module.define("def forward(self, x):\n    return x + self.big\n");
  const auto model = OpenModel(Save(module, TempFolder("in")));
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), Code::kInput);
  EXPECT_THAT(model.status().message(), HasSubstr("'big' reaches beyond its storage"));
}

TEST(OpenModelTest, CopiesWhereCodeBuildsTheObjects) {
  torch::jit::Module module("M");
  module.register_buffer("b", at::ones({3}));
  module.register_attribute("training", c10::BoolType::get(), false);
  module.define(R"(
def __getstate__(self):
    return (self.b, self.training)
def __setstate__(self, state: Tuple[Tensor, bool]):
    self.b = state[0].add_(1)
    self.training = state[1]
def forward(self, x):
    return x + self.b
)");
  const auto model = OpenModel(Save(module, TempFolder("in")));
  ASSERT_TRUE(model.ok()) << model.status().message();
  const at::Tensor buffer = model->module.attr("b").toTensor();
  EXPECT_EQ(model->archive->RecordAt(buffer.const_data_ptr()), nullptr);
  EXPECT_EQ(buffer[0].item<float>(), 2);
}

TEST(WriteModelTest, NamesLeaveNoTrace) {
  const std::string folder = TempFolder("out");
  EXPECT_TRUE(Read(Save(MakeBlock({}), folder, "a.pt")) == Read(Save(MakeBlock({}), folder, "another.pt")));
}

// Once opened and written, opening and writing again changes no byte.
TEST(WriteModelTest, KeepsWhatWasOpened) {
  const std::string folder = TempFolder("out");
  const std::string first = Save(OpenModel(Save(MakeStack({}, {.seed = 2}, true), folder, "a.pt"))->module, folder, "b.pt");
  EXPECT_TRUE(Read(first) == Read(Save(OpenModel(first)->module, folder, "c.pt")));
}

TEST(WriteModelTest, GivesBackTheSinksFailure) {
  for (int allowed : {0, 1, 3, 10}) {
    int left = allowed;
    const Status status = WriteModel(
        MakeBlock({}), {}, [&](const void*, size_t) { return left-- > 0 ? Status() : Status(Code::kOutput, "the disk is full"); });
    EXPECT_EQ(status.message(), "the disk is full");
  }
}

TEST(ObjectIndexTest, GroupsObjectsByType) {
  const torch::jit::Module stack = MakeStack({}, {.seed = 2}, /*share_type=*/true);
  const ObjectIndex index(stack);
  EXPECT_EQ(index.OfType(FindModule(stack, "first")->type().get()).size(), 2);
  EXPECT_EQ(index.OfType(FindModule(stack, "second.experts.e0")->type().get()).size(), 8);
  EXPECT_FALSE(FindModule(stack, "third").has_value());
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Load: what comes back runs and is this rank's; every reason not to load has its sentence.
#include "plugin/load/load.h"

#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "plugin/comm/local.h"
#include "plugin/load/directory.h"
#include "tests/plugin/load/sample_directory.h"

namespace autoep {
namespace {

using contract::SampleSizes;
using testing::HasSubstr;
using testing::StartsWith;

struct Tokens {
  at::Tensor x, ids, weights;
};

Tokens MakeTokens(int64_t count, const SampleSizes& sizes, uint64_t seed) {
  at::manual_seed(seed);
  return {at::randn({count, sizes.hidden}), at::randint(sizes.num_experts, {count, 2}, at::kLong), at::rand({count, 2})};
}

at::Tensor Forward(torch::jit::Module& model, const Tokens& tokens) {
  return model.forward({tokens.x, tokens.ids, tokens.weights}).toTensor();
}

class LoadTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void ExpectRefused(Code code, const std::string& sentence, const LoadOptions& options = {.rank = 0}) {
    const Result<torch::jit::Module> model = TryLoad(directory_.string(), options);
    ASSERT_FALSE(model.ok()) << "loaded; expected: " << sentence;
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_THAT(model.status().message(), StartsWith(directory_.string()));
    EXPECT_THAT(model.status().message(), HasSubstr(sentence));
  }

  std::filesystem::path directory_;
};

TEST_F(LoadTest, OneRankNeedsNoGroup) {
  const SampleSizes sizes{.ep_size = 1, .layers = 2};
  const SampleDirectory sample = MakeDirectory(directory_, sizes);
  torch::jit::Module model = Load(directory_.string());
  const Tokens tokens = MakeTokens(7, sizes, 3);
  EXPECT_TRUE(at::allclose(Forward(model, tokens), sample.Reference(tokens.x, tokens.ids, tokens.weights), 1e-4, 1e-4));
}

class Ranks : public LoadTest, public testing::WithParamInterface<std::tuple<int64_t, std::string, bool>> {};

// Each rank has tokens of its own, one of them none.
TEST_P(Ranks, OfALocalGroupGetTheirShardsAndRun) {
  const auto& [ep_size, layout, reversed] = GetParam();
  const SampleSizes sizes{.ep_size = ep_size, .num_experts = 8, .layers = 2, .reversed = reversed};
  const SampleDirectory sample = MakeDirectory(directory_, sizes, layout);
  std::vector<Tokens> tokens;
  for (int64_t rank = 0; rank < ep_size; ++rank) tokens.push_back(MakeTokens(3 * rank, sizes, rank));
  std::vector<at::Tensor> outputs(ep_size);
  comm::LocalGroup group("ep", ep_size);
  const Status status = group.Run([&](int64_t rank) {
    torch::jit::Module model = Load(directory_.string(), {.group = "ep"});
    outputs[rank] = Forward(model, tokens[rank]);
  });
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t rank = 0; rank < ep_size; ++rank) {
    const at::Tensor expected = sample.Reference(tokens[rank].x, tokens[rank].ids, tokens[rank].weights);
    EXPECT_TRUE(at::allclose(outputs[rank], expected, 1e-4, 1e-4)) << "rank " << rank;
  }
}

INSTANTIATE_TEST_SUITE_P(Load, Ranks,
                         testing::Combine(testing::Values(1, 2, 4, 8), testing::Values("shared", "per-rank"), testing::Bool()));

TEST_F(LoadTest, ShardIsTheRanks) {
  const SampleDirectory sample = MakeDirectory(directory_, {.ep_size = 2, .num_experts = 4, .dtype = "BF16", .dtype_bytes = 2});
  for (int64_t rank = 0; rank < 2; ++rank) {
    const auto shard = LoadShard(directory_.string(), rank);
    ASSERT_TRUE(shard.ok()) << shard.status().message();
    ASSERT_EQ(shard->size(), 2u);
    for (const auto& [name, tensor] : *shard) {
      EXPECT_TRUE(at::equal(tensor, sample.experts.at(name).narrow(0, 2 * rank, 2))) << name;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 64, 0u);
    }
  }
}

TEST_F(LoadTest, GradientsAreAsInTheManifestUnlessTrainable) {
  MakeDirectory(directory_);
  const auto requires_grad = [&](bool trainable) {
    std::map<std::string, bool> out;
    const torch::jit::Module model = Load(directory_.string(), {.rank = 0, .trainable = trainable});
    for (const auto& parameter : model.named_parameters()) out[parameter.name] = parameter.value.requires_grad();
    return out;
  };
  EXPECT_EQ(requires_grad(false),
            (std::map<std::string, bool>{
                {"model.block0.autoep_down", true}, {"model.block0.autoep_gate_up", false}, {"model.scale", false}}));
  for (const auto& [name, trainable] : requires_grad(true)) EXPECT_TRUE(trainable) << name;
}

TEST_F(LoadTest, TrainableExpertsGetGradients) {
  const SampleSizes sizes{.ep_size = 1};
  MakeDirectory(directory_, sizes);
  torch::jit::Module model = Load(directory_.string(), {.trainable = true});
  Forward(model, MakeTokens(5, sizes, 1)).sum().backward();
  for (const auto& parameter : model.named_parameters()) {
    ASSERT_TRUE(parameter.value.grad().defined()) << parameter.name;
    EXPECT_GT(parameter.value.grad().abs().sum().item<float>(), 0) << parameter.name;
  }
}

TEST_F(LoadTest, GroupNameIsSetInEveryBlock) {
  MakeDirectory(directory_, {.layers = 2});
  const torch::jit::Module model = Load(directory_.string(), {.group = "experts", .rank = 0});
  for (const char* block : {"block0", "block1"}) {
    EXPECT_EQ(model.attr("model").toModule().attr(block).toModule().attr("autoep_group").toStringRef(), "experts");
  }
}

TEST_F(LoadTest, GroupIsNeededWithoutARank) {
  MakeDirectory(directory_);
  ExpectRefused(Code::kPlugin, "there is no default process group", {});
  ExpectRefused(Code::kPlugin, "no process group is registered under 'tp'", {.group = "tp"});
}

TEST_F(LoadTest, RankThatIsNotTheGroupsIsRefused) {
  MakeDirectory(directory_);
  comm::LocalGroup group("ep", 2);
  const Status status = group.Run([&](int64_t rank) {
    ExpectRefused(Code::kPlugin, "this process is rank " + std::to_string(rank) + " of the group",
                  {.group = "ep", .rank = 1 - rank});
  });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_F(LoadTest, GroupOfAnotherSizeIsRefused) {
  MakeDirectory(directory_);
  comm::LocalGroup group("ep", 4);
  const Status status = group.Run([&](int64_t) { ExpectRefused(Code::kPlugin, "has 4 ranks", {.group = "ep"}); });
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_F(LoadTest, RankOutsideTheDirectoryIsRefused) {
  MakeDirectory(directory_);
  ExpectRefused(Code::kPlugin, "was converted for ranks 0 to 1, and rank 2 was asked for", {.rank = 2});
}

TEST_F(LoadTest, MissingDirectoryIsRefused) { ExpectRefused(Code::kInput, "autoep convert"); }

TEST_F(LoadTest, OtherAbiIsRefused) {
  SampleDirectory sample = MakeDirectory(directory_);
  sample.manifest.op_abi = 2;
  sample.WriteManifest();
  ExpectRefused(Code::kPlugin, "was written by autoep 0.1.0 for op ABI 2, and this libautoep has op ABI 1");
}

TEST_F(LoadTest, ModelOfAnotherConversionIsRefused) {
  SampleDirectory sample = MakeDirectory(directory_);
  sample.manifest.plan = "plan-9999";
  sample.WriteManifest();
  ExpectRefused(Code::kPlugin, "the directory mixes files of two conversions");
}

TEST_F(LoadTest, ModelWithoutAManifestIsRefused) {
  SampleDirectory sample = MakeDirectory(directory_);
  torch::jit::Module("Empty").save(sample.File("model.pt"));
  for (contract::ManifestFile& file : sample.manifest.files) {
    if (file.file == "model.pt") file.bytes = std::filesystem::file_size(sample.File("model.pt"));
  }
  sample.WriteManifest();
  ExpectRefused(Code::kPlugin, "carries no manifest");
}

TEST_F(LoadTest, MissingShardIsRefused) {
  const SampleDirectory sample = MakeDirectory(directory_);
  std::filesystem::remove(sample.File("experts-00000-of-00002.safetensors"));
  ExpectRefused(Code::kPlugin, "experts-00000-of-00002.safetensors: No such file or directory");
  EXPECT_TRUE(TryLoad(directory_.string(), {.rank = 1}).ok());  // the other rank does not need it
}

TEST_F(LoadTest, TruncatedShardIsRefused) {
  const SampleDirectory sample = MakeDirectory(directory_);
  std::filesystem::resize_file(sample.File("experts-00000-of-00002.safetensors"), 200);
  ExpectRefused(Code::kPlugin, "has 200 bytes, and autoep.json says");
}

TEST_F(LoadTest, ChangedByteIsFoundByItsHash) {
  const SampleDirectory sample = MakeDirectory(directory_);
  std::fstream shard(sample.File("experts-00000-of-00002.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
  shard.seekp(-1, std::ios::end);
  shard.put('\x7f');
  shard.close();
  ExpectRefused(Code::kPlugin, "does not have the sha256", {.rank = 0, .verify_hashes = true});
  EXPECT_TRUE(TryLoad(directory_.string(), {.rank = 1, .verify_hashes = true}).ok());
}

TEST_F(LoadTest, ManifestThatNamesAnotherParameterIsRefused) {
  SampleDirectory sample = MakeDirectory(directory_);
  sample.manifest.layers[0].group_attr = "model.block7.autoep_group";
  sample.WriteManifest();
  ExpectRefused(Code::kPlugin, "model.pt: has no string attribute 'model.block7.autoep_group', which autoep.json names");
}

TEST_F(LoadTest, ThrowsTheSentence) {
  try {
    Load(directory_.string());
    FAIL() << "loaded nothing";
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(), StartsWith("autoep: " + directory_.string()));
  }
}

}  // namespace
}  // namespace autoep

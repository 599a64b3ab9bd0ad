// SPDX-License-Identifier: Apache-2.0
// A shard is opened only if it is what the manifest says.
#include "plugin/contract/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "plugin/io/sha256.h"
#include "tests/plugin/contract/sample_manifest.h"

namespace autoep::contract {
namespace {

using testing::HasSubstr;

class Shard : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory() const { return directory_.string(); }

  // Writes rank 1's shard with the given tensors, filled with `fill`, and lists its size.
  void Write(const std::vector<SafetensorsSpec>& specs, char fill = 1) {
    std::ofstream out(directory_ / ShardName(1, 2), std::ios::binary);
    auto writer = SafetensorsWriter::Create(specs, {}, [&](const void* data, size_t size) {
      out.write(static_cast<const char*>(data), size);
      return Status();
    });
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    const std::string bytes(writer->data_bytes(), fill);
    ASSERT_TRUE(writer->Append(bytes.data(), bytes.size()).ok());
    ASSERT_TRUE(writer->Finish().ok());
    out.close();
    manifest_.files[2].bytes = std::filesystem::file_size(directory_ / ShardName(1, 2));
  }

  void ExpectRefused(int64_t rank, const std::string& sentence) {
    const Result<SafetensorsFile> shard = OpenShard(manifest_, directory(), rank);
    ASSERT_FALSE(shard.ok());
    EXPECT_EQ(shard.status().code(), Code::kPlugin);
    EXPECT_THAT(shard.status().message(), HasSubstr(sentence));
  }

  std::filesystem::path directory_;
  Manifest manifest_ = SampleManifest();
};

TEST_F(Shard, OpensWithTheManifestsTensors) {
  Write(ShardTensors(manifest_, 1));
  const Result<SafetensorsFile> shard = OpenShard(manifest_, directory(), 1);
  ASSERT_TRUE(shard.ok()) << shard.status().message();
  const SafetensorsTensor* down = shard->Find("model.block0.autoep_down");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->shape, (std::vector<int64_t>{2, 6, 5}));
  EXPECT_EQ(down->bytes, 2u * 6 * 5 * 4);
}

TEST_F(Shard, RankOutsideTheEpSizeIsRefused) {
  ExpectRefused(2, "has shards for ranks 0 to 1, and rank 2 was asked for");
  ExpectRefused(-1, "rank -1 was asked for");
}

TEST_F(Shard, PerRankLayoutHasNone) {
  manifest_.layout = "per-rank";
  ExpectRefused(1, "load rank-00001-of-00002.pt itself");
}

TEST_F(Shard, MissingFileIsRefused) { ExpectRefused(1, "experts-00001-of-00002.safetensors: No such file or directory: copy it"); }

TEST_F(Shard, UnlistedFileIsRefused) {
  Write(ShardTensors(manifest_, 1));
  manifest_.files.pop_back();
  ExpectRefused(1, "is not listed in autoep.json");
}

TEST_F(Shard, OtherSizeIsRefused) {
  Write(ShardTensors(manifest_, 1));
  manifest_.files[2].bytes += 1;
  ExpectRefused(1, "the copy is incomplete or belongs to another conversion");
}

TEST_F(Shard, MissingTensorIsRefused) {
  auto specs = ShardTensors(manifest_, 1);
  specs.pop_back();
  Write(specs);
  ExpectRefused(1, "has no tensor 'model.block0.autoep_down', which the manifest names");
}

TEST_F(Shard, ExtraTensorIsRefused) {
  auto specs = ShardTensors(manifest_, 1);
  specs.push_back({.name = "stray", .dtype = "F32", .shape = {1}});
  Write(specs);
  ExpectRefused(1, "has a tensor 'stray', which the manifest does not name");
}

TEST_F(Shard, OtherShapeIsRefused) {
  auto specs = ShardTensors(manifest_, 1);
  std::swap(specs[0].shape[1], specs[0].shape[2]);
  Write(specs);
  ExpectRefused(1, "'model.block0.autoep_gate_up' is F32 [2, 6, 10], and the manifest says F32 [2, 10, 6]");
}

TEST_F(Shard, OtherDtypeIsRefused) {
  auto specs = ShardTensors(manifest_, 1);
  specs[1].dtype = "I32";
  Write(specs);
  ExpectRefused(1, "is I32 [2, 6, 5], and the manifest says F32 [2, 6, 5]");
}

TEST_F(Shard, TextInItsPlaceIsRefused) {
  std::ofstream(directory_ / ShardName(1, 2)) << "not a shard";
  manifest_.files[2].bytes = 11;
  ExpectRefused(1, "experts-00001-of-00002.safetensors");
}

TEST_F(Shard, HashesAreThoseOfTheBytes) {
  Write(ShardTensors(manifest_, 1), 'x');
  for (ManifestTensor& tensor : manifest_.layers[0].tensors) {
    tensor.pieces[1].sha256 = Sha256Hex(std::string(tensor.pieces[1].bytes, 'x'));
  }
  const Result<SafetensorsFile> shard = OpenShard(manifest_, directory(), 1);
  ASSERT_TRUE(shard.ok()) << shard.status().message();
  EXPECT_TRUE(CheckShardHashes(manifest_, 1, *shard).ok());
  manifest_.layers[0].tensors[1].pieces[1].sha256 = SampleHash('0');
  const Status status = CheckShardHashes(manifest_, 1, *shard);
  EXPECT_EQ(status.code(), Code::kPlugin);
  EXPECT_THAT(status.message(), HasSubstr("'model.block0.autoep_down' does not have the sha256"));
}

}  // namespace
}  // namespace autoep::contract

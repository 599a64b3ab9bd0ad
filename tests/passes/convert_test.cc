// SPDX-License-Identifier: Apache-2.0
// Convert, end to end on small scripted models: the answers stay, the bytes are proved, and damage is found.
#include "passes/convert.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/serialization/import.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "passes/detect/detect.h"
#include "passes/model/tensors.h"
#include "passes/repack/prove.h"
#include "plugin/io/json.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/sha256.h"
#include "plugin/io/zip_directory.h"
#include "plugin/load/load.h"
#include "tests/passes/sample_moe.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using testing::MakeBlock;
using testing::MakeStack;
using testing::SampleMoe;

ConvertOptions Options(int64_t ep_size, const std::string& layout = "shared") {
  ConvertOptions options;
  options.ep_size = ep_size;
  options.layout = layout;
  options.tool = "autoep test";
  return options;
}

Result<Converted> ConvertFile(const std::string& source, const std::string& target, const ConvertOptions& options) {
  AUTOEP_ASSIGN_OR_RETURN(MoeModel model, OpenModel(source));
  AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedDirectory::Create(target));
  AUTOEP_ASSIGN_OR_RETURN(Converted converted, Convert(model, Detect(model.module), options, *staged));
  AUTOEP_RETURN_IF_ERROR(staged->Publish());
  return converted;
}

at::Tensor Run(torch::jit::Module module, const at::Tensor& x) { return module.forward({x}).toTensor(); }

// The source's answers and those of its conversion to one rank.
void ExpectSameAnswers(const torch::jit::Module& source, const SampleMoe& sample, const std::string& layout) {
  const std::string folder = testing::TempFolder(layout);
  const std::string path = testing::Save(source, folder);
  const auto converted = ConvertFile(path, folder + "/out", Options(1, layout));
  ASSERT_TRUE(converted.ok()) << converted.status().message();
  for (int64_t count : {1, 5, 33}) {
    const at::Tensor x = testing::Tokens(sample, count);
    const at::Tensor expected = Run(torch::jit::load(path), x);
    const at::Tensor found = Run(Load(folder + "/out", {}), x);
    const double scale = expected.abs().max().item<double>();
    EXPECT_LE((found - expected).abs().max().item<double>(), 1e-5 * scale) << count << " tokens";
  }
}

TEST(ConvertTest, KeepsTheAnswers) { ExpectSameAnswers(MakeBlock({}), {}, "shared"); }
TEST(ConvertTest, KeepsTheAnswersPerRank) { ExpectSameAnswers(MakeBlock({}), {}, "per-rank"); }
TEST(ConvertTest, KeepsTheAnswersOfAHelperMethod) { ExpectSameAnswers(MakeBlock({}, /*helper=*/true), {}, "shared"); }
TEST(ConvertTest, KeepsTheAnswersOfASharedType) {
  ExpectSameAnswers(MakeStack({}, {.seed = 2}, /*share_type=*/true), {}, "shared");
}

TEST(ConvertTest, RefusesASourceThatWasWrittenToMeanwhile) {
  const std::string folder = testing::TempFolder("written");
  const std::string path = testing::Save(MakeBlock({}), folder);
  auto model = OpenModel(path);
  ASSERT_TRUE(model.ok());
  const auto staged = StagedDirectory::Create(folder + "/out");
  ASSERT_TRUE(staged.ok());
  std::ofstream(path, std::ios::app) << "more";
  const auto converted = Convert(*model, Detect(model->module), Options(2), **staged);
  ASSERT_FALSE(converted.ok());
  EXPECT_EQ(converted.status().code(), Code::kInput);
  EXPECT_THAT(converted.status().message(), HasSubstr("was changed while it was being read"));
}

// What becomes of a model with a good block and this refusal.
Status ConvertBeside(const Refusal& refusal) {
  const std::string folder = testing::TempFolder("beside");
  AUTOEP_ASSIGN_OR_RETURN(MoeModel model, OpenModel(testing::Save(MakeBlock({}), folder)));
  Detection detection = Detect(model.module);
  detection.refusals.push_back(refusal);
  AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedDirectory::Create(folder + "/out"));
  return Convert(model, detection, Options(2), *staged).status();
}

TEST(ConvertTest, RefusesAModelOfWhichOneBlockStaysWrong) {
  const Status status = ConvertBeside({"other", "baked: the graph holds 7 of the router's 8 experts", "", "", ""});
  EXPECT_EQ(status.code(), Code::kNoMoe);
  EXPECT_THAT(status.message(), HasSubstr("7 of the router's 8 experts; nothing of the model is converted"));
}

TEST(ConvertTest, RefusesAGraphOfWhichOneBlockIsRefused) {
  const Status status = ConvertBeside({"", "the experts must be known", "", "", ""});
  EXPECT_EQ(status.code(), Code::kNoMoe);
  EXPECT_THAT(status.message(), HasSubstr("the experts must be known; nothing of the model is converted"));
  EXPECT_TRUE(ConvertBeside({"other", "the experts must be known", "", "", ""}).ok());
}

TEST(ConvertTest, RefusesAnEpSizeThatDoesNotDivide) {
  const std::string folder = testing::TempFolder("in");
  const auto converted = ConvertFile(testing::Save(MakeBlock({}), folder), folder + "/out", Options(3));
  ASSERT_FALSE(converted.ok());
  EXPECT_EQ(converted.status().code(), Code::kPlan);
  EXPECT_THAT(converted.status().message(), HasSubstr("4 experts"));
  EXPECT_THAT(converted.status().message(), HasSubstr("1, 2, 4"));
  EXPECT_FALSE(std::filesystem::exists(folder + "/out"));
}

TEST(ConvertTest, SaysWhatIsWrongWithAnEpSizeOfZero) {
  const std::string folder = testing::TempFolder("in");
  EXPECT_EQ(ConvertFile(testing::Save(MakeBlock({}), folder), folder + "/out", Options(0)).status().code(), Code::kUsage);
}

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ConvertTest, GivesTheSameBytesWhateverTheNames) {
  const std::string folder = testing::TempFolder("in");
  const std::string one = testing::Save(MakeBlock({}), folder, "one.pt");
  std::filesystem::copy(one, folder + "/another name.pt");
  ASSERT_TRUE(ConvertFile(one, folder + "/a", Options(2)).ok());
  ASSERT_TRUE(ConvertFile(folder + "/another name.pt", folder + "/longer-name", Options(2)).ok());
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/a")) {
    EXPECT_TRUE(Bytes(entry.path()) == Bytes(folder + "/longer-name/" + entry.path().filename().string())) << entry.path();
    ++files;
  }
  EXPECT_EQ(files, 5);
}

// Copies no expert byte into model.pt or the skeleton.
TEST(ConvertTest, LeavesTheExpertsToTheShards) {
  const SampleMoe big{.hidden = 64, .intermediate = 64};
  const std::string folder = testing::TempFolder("in");
  const auto converted = ConvertFile(testing::Save(MakeBlock(big), folder), folder + "/out", Options(4));
  ASSERT_TRUE(converted.ok()) << converted.status().message();
  const uint64_t experts = 4 * 3 * 64 * 64 * 4;
  EXPECT_LT(std::filesystem::file_size(folder + "/out/model.pt"), experts / 4);
  EXPECT_LT(std::filesystem::file_size(folder + "/out/source.pt-skeleton"), experts / 4);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_NEAR(std::filesystem::file_size(folder + "/out/" + contract::ShardName(rank, 4)), experts / 4, 1024);
  }
}

// Tensors that neither the shards nor model.pt hold stay in the skeleton, and the list says where the others are.
TEST(ConvertTest, KeepsTheRestInTheSkeleton) {
  const std::string folder = testing::TempFolder("in");
  torch::jit::Module block = MakeBlock({});
  block.register_buffer("unread", at::ones({5}));
  const std::string source = testing::Save(block, folder);
  ASSERT_TRUE(ConvertFile(source, folder + "/out", Options(2)).ok());
  const auto original = ZipDirectory::Open(source);
  const auto skeleton = ZipDirectory::Open(folder + "/out/source.pt-skeleton");
  ASSERT_TRUE(skeleton.ok()) << skeleton.status().message();
  const Json list = Json::parse(*skeleton->Read(*skeleton->Find("autoep/records.json")));
  std::map<std::string, int> places;
  for (const Json& record : list["records"]) {
    const std::string name = record["name"];
    ++places[record["in"]];
    if (record["in"] != "skeleton" || name == ".data/serialization_id") continue;
    ASSERT_NE(skeleton->Find(name), nullptr) << name;
    EXPECT_TRUE(*skeleton->Read(*skeleton->Find(name)) == *original->Read(*original->Find(name))) << name;
  }
  EXPECT_EQ(places["experts"], 12);
  EXPECT_EQ(places["model"], 2);  // the gate and the buffer
  EXPECT_EQ(list["records"].size(), original->records().size());
}

TEST(ConvertTest, StripsTheAuthorsLines) {
  const std::string folder = testing::TempFolder("in");
  torch::jit::Module block = MakeBlock({});
  const std::string source = testing::Save(block, folder);
  ConvertOptions options = Options(2);
  ASSERT_TRUE(ConvertFile(source, folder + "/kept", options).ok());
  options.strip_debug = true;
  ASSERT_TRUE(ConvertFile(source, folder + "/stripped", options).ok());
  const auto lines = [&](const std::string& file) {
    const auto zip = ZipDirectory::Open(folder + file);
    std::string text;
    for (const ZipRecord& record : zip->records()) {
      if (record.name.ends_with(".debug_pkl")) text += *zip->Read(record);
    }
    return text;
  };
  EXPECT_THAT(lines("/kept/model.pt"), HasSubstr("torch.topk(p, 2"));
  EXPECT_THAT(lines("/stripped/model.pt"), ::testing::Not(HasSubstr("torch.topk(p, 2")));
  EXPECT_EQ(lines("/stripped/source.pt-skeleton"), "");
}

// What ProveBytes says of a shard that `damage` was done to; the manifest's hash is made to fit, as a faulty writer's would.
class ByteProofTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempFolder("in");
    source_ = testing::Save(MakeBlock({}), folder_);
    auto converted = ConvertFile(source_, folder_ + "/out", Options(2));
    ASSERT_TRUE(converted.ok()) << converted.status().message();
    manifest_ = converted->manifest;
  }

  Result<ByteProof> Prove() { return ProveBytes(*OpenModel(source_), manifest_, folder_ + "/out"); }

  void Damage(const std::string& role, const std::function<void(char*)>& damage) {
    const std::string path = folder_ + "/out/" + contract::ShardName(0, 2);
    std::string bytes = Bytes(path);
    for (contract::ManifestTensor& tensor : manifest_.layers[0].tensors) {
      if (tensor.role != role) continue;
      const auto shard = SafetensorsFile::Parse(bytes, path);
      const SafetensorsTensor* stored = shard->Find(tensor.param);
      damage(const_cast<char*>(stored->data));
      tensor.pieces[0].sha256 = Sha256Hex({stored->data, stored->bytes});
    }
    std::ofstream(path, std::ios::binary) << bytes;
  }

  std::string folder_;
  std::string source_;
  contract::Manifest manifest_;
};

constexpr int64_t kRow = 8 * sizeof(float);  // of gate_up
constexpr int64_t kGateRows = 6, kUpRows = 6;

TEST_F(ByteProofTest, FindsEveryByte) {
  const auto proof = Prove();
  ASSERT_TRUE(proof.ok()) << proof.status().message();
  EXPECT_EQ(proof->source_tensors, 12);
  EXPECT_EQ(proof->bytes, 4 * 3 * 6 * 8 * 4);
}

TEST_F(ByteProofTest, SeesGateAndUpSwapped) {
  Damage("gate_up", [](char* data) { std::swap_ranges(data, data + kGateRows * kRow, data + kGateRows * kRow); });
  EXPECT_EQ(Prove().status().code(), Code::kVerify);
  EXPECT_THAT(Prove().status().message(), HasSubstr("expert 0 differs"));
}

TEST_F(ByteProofTest, SeesExpertsPermuted) {
  constexpr int64_t kExpert = (kGateRows + kUpRows) * kRow;
  Damage("gate_up", [](char* data) { std::swap_ranges(data, data + kExpert, data + kExpert); });
  EXPECT_EQ(Prove().status().code(), Code::kVerify);
}

TEST_F(ByteProofTest, SeesTheLastBitOfTheLastElement) {
  Damage("down", [](char* data) { data[2 * 8 * 6 * 4 - 4] ^= 1; });
  EXPECT_EQ(Prove().status().code(), Code::kVerify);
  EXPECT_THAT(Prove().status().message(), HasSubstr("row 7"));
}

TEST_F(ByteProofTest, SeesAHashThatIsNotTheBytes) {
  manifest_.layers[0].tensors[0].pieces[1].sha256 = std::string(64, '0');
  EXPECT_THAT(Prove().status().message(), HasSubstr("hash"));
}

TEST_F(ByteProofTest, SeesASourceTensorThatIsNotCovered) {
  for (contract::ManifestTensor& tensor : manifest_.layers[0].tensors) {
    if (tensor.role == "down") tensor.source[3].tensor = tensor.source[2].tensor;
  }
  EXPECT_THAT(Prove().status().message(), HasSubstr("twice"));
}

TEST_F(ByteProofTest, SeesADroppedPart) {
  for (contract::ManifestTensor& tensor : manifest_.layers[0].tensors) {
    if (tensor.role == "gate_up") tensor.source[0].row_count -= 1;
  }
  EXPECT_THAT(Prove().status().message(), HasSubstr("is in no shard"));
}

TEST_F(ByteProofTest, RefusesAnotherSource) {
  source_ = testing::Save(MakeBlock({.seed = 9}), folder_, "other.pt");
  EXPECT_THAT(Prove().status().message(), HasSubstr("not the model that was converted"));
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The manifest: what is written is read back equal, and every way to be wrong has its sentence.
#include "plugin/contract/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "plugin/io/json.h"
#include "tests/plugin/contract/sample_manifest.h"

namespace autoep::contract {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Json SampleJson() { return Json::parse(ToJson(SampleManifest())); }

void ExpectRefused(const Json& json, const std::string& sentence) {
  const Result<Manifest> manifest = ParseManifest(json.dump());
  ASSERT_FALSE(manifest.ok()) << "accepted; expected: " << sentence;
  EXPECT_EQ(manifest.status().code(), Code::kPlugin);
  EXPECT_THAT(manifest.status().message(), StartsWith("autoep.json: "));
  EXPECT_THAT(manifest.status().message(), HasSubstr(sentence));
}

TEST(Manifest, TextIsSortedAndEndsInANewline) {
  const std::string text = ToJson(SampleManifest());
  EXPECT_THAT(text,
              StartsWith("{\n  \"ep_size\": 2,\n  \"files\": [\n    {\n      \"bytes\": 100,\n      \"file\": \"model.pt\",\n"));
  EXPECT_TRUE(text.ends_with("}\n"));
}

TEST(Manifest, ReadsBackEveryField) {
  Manifest manifest = SampleManifest({.layers = 2});
  manifest.limits = {"proved for batch >= 2"};
  ManifestLayer& layer = manifest.layers[1];
  layer.activation = "clamped_swiglu";
  layer.activation_args = {1.702, 7.0};
  layer.weights_act = "input";
  layer.shared_experts = {"shared_expert"};
  layer.rebuilt = "baked: the graph holds 2 of the router's 4 experts";
  layer.tensors[0].requires_grad = true;
  layer.tensors[1].source[0].transposed = true;
  layer.tensors[1].source[0].source_row_begin = 1;
  layer.tensors[1].source[0].source_row_step = 2;
  const Result<Manifest> read = ParseManifest(ToJson(manifest));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_TRUE(*read == manifest);
}

// Random sizes, dtypes and placements: parse(dump(m)) == m, and the text is the same again.
TEST(Manifest, RoundTripHoldsForRandomManifests) {
  std::mt19937_64 random(7);
  const auto pick = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
  for (int round = 0; round < 100; ++round) {
    const bool half = pick(0, 1) == 1;
    SampleSizes sizes{.ep_size = pick(1, 4), .hidden = pick(1, 9), .intermediate = pick(1, 9), .layers = pick(1, 3)};
    sizes.num_experts = sizes.ep_size * pick(2, 4);
    sizes.dtype = half ? "BF16" : "F64";
    sizes.dtype_bytes = half ? 2 : 8;
    Manifest manifest = SampleManifest(sizes);
    for (ManifestLayer& layer : manifest.layers) {
      std::shuffle(layer.placement.begin(), layer.placement.end(), random);
      layer.activation_args.push_back(std::uniform_real_distribution<double>(-1, 1)(random));
      for (ManifestTensor& tensor : layer.tensors) std::shuffle(tensor.source.begin(), tensor.source.end(), random);
    }
    const std::string text = ToJson(manifest);
    const Result<Manifest> read = ParseManifest(text);
    ASSERT_TRUE(read.ok()) << read.status().message();
    ASSERT_TRUE(*read == manifest);
    ASSERT_EQ(ToJson(*read), text);
  }
}

// Every object of the sample, by pointer.
std::vector<Json::json_pointer> Objects(const Json& json) {
  std::vector<Json::json_pointer> out;
  const auto visit = [&](auto&& self, const Json& value, const Json::json_pointer& here) -> void {
    if (value.is_object()) out.push_back(here);
    if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i) self(self, value[i], here / i);
    } else if (value.is_object()) {
      for (const auto& [key, item] : value.items()) self(self, item, here / key);
    }
  };
  visit(visit, json, Json::json_pointer());
  return out;
}

TEST(Manifest, EveryKeyIsNeededAndNoOtherIsTaken) {
  const Json sample = SampleJson();
  for (const Json::json_pointer& pointer : Objects(sample)) {
    if (pointer.to_string().ends_with("/router")) continue;  // its keys are free
    Json extra = sample;
    extra[pointer]["surprise"] = 1;
    ExpectRefused(extra, "surprise");
    for (const auto& [key, value] : sample[pointer].items()) {
      Json missing = sample;
      missing[pointer].erase(key);
      ExpectRefused(missing, key);
    }
  }
}

TEST(Manifest, EveryValueHasOneType) {
  const Json sample = SampleJson();
  for (const Json::json_pointer& pointer : Objects(sample)) {
    for (const auto& [key, value] : sample[pointer].items()) {
      Json changed = sample;
      changed[pointer][key] = value.is_string() ? Json(7) : Json("seven");
      ExpectRefused(changed, key);
    }
  }
}

struct Variant {
  const char* name;
  const char* pointer;
  Json value;
  const char* sentence;
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.pointer << " = " << variant.value; }

class Refused : public testing::TestWithParam<Variant> {};

TEST_P(Refused, WithASentence) {
  Json json = SampleJson();
  json[Json::json_pointer(GetParam().pointer)] = GetParam().value;
  ExpectRefused(json, GetParam().sentence);
}

INSTANTIATE_TEST_SUITE_P(
    Manifest, Refused,
    testing::ValuesIn(std::vector<Variant>{
        {"Version", "/version", 2, "version is 2, and this build of autoep reads 1: use the autoep that wrote it (autoep 0.1.0)"},
        {"Abi", "/op_abi", 0, "op_abi"},
        {"Layout", "/layout", "both", "layout: expected 'shared' or 'per-rank', found 'both'"},
        {"EpSize", "/ep_size", 0, "ep_size"},
        {"Tool", "/tool", "", "tool: is empty"},
        {"Plan", "/plan", "", "plan: is empty"},
        {"Digest", "/source/digest", "ABC", "source.digest: expected 64 lower-case hex digits, found 'ABC'"},
        {"FileFolder", "/files/0/file", "x/model.pt", "files[0].file: 'x/model.pt' is not a plain file name"},
        {"FileParent", "/files/0/file", "..", "'..' is not a plain file name"},
        {"FileEmpty", "/files/0/file", "", "'' is not a plain file name"},
        {"FileControl", "/files/0/file", "a\nb", "is not a plain file name"},
        {"FileSelf", "/files/0/file", "autoep.json", "the manifest does not list itself"},
        {"FileTwice", "/files/1/file", "model.pt", "files[1].file: 'model.pt' occurs twice"},
        {"FileBytes", "/files/0/bytes", -1, "files[0].bytes"},
        {"FileHash", "/files/0/sha256", "", "files[0].sha256: expected 64"},
        {"NoLayers", "/layers", Json::array(), "layers: is empty"},
        {"Label", "/layers/0/label", "", "layers[0].label: is empty"},
        {"Family", "/layers/0/family", "", "layers[0].family: is empty"},
        {"Form", "/layers/0/form", "", "layers[0].form: is empty"},
        {"GroupAttribute", "/layers/0/group_attr", "", "layers[0].group_attr: '' is not the name of an attribute"},
        {"PlacementAttribute", "/layers/0/placement_attr", "a..b", "'a..b' is not the name of an attribute"},
        {"Activation", "/layers/0/activation", "swish", "layers[0].activation: this build does not know 'swish'"},
        {"WeightsAct", "/layers/0/weights_act", "before", "expected 'after' or 'input', found 'before'"},
        {"TopK", "/layers/0/top_k", 5, "layers[0].top_k: 5 is more than the 4 experts"},
        {"PlacementRank", "/layers/0/placement/0/rank", 2, "layers[0].placement: "},
        {"PlacementSlot", "/layers/0/placement/0/slot", 1, "layers[0].placement: "},
        {"PlacementShort", "/layers/0/placement", Json::array(), "layers[0].placement: expected 4 experts, found 0"},
        {"NoTensors", "/layers/0/tensors", Json::array(), "layers[0].tensors: is empty"},
        {"Role", "/layers/0/tensors/0/role", "gate", "layers[0].tensors[0].role: 'gate' is none of gate_up, up, down"},
        {"RoleTwice", "/layers/0/tensors/0/role", "down", "layers[0].tensors[1].role: 'down' occurs twice"},
        {"Param", "/layers/0/tensors/0/param", ".x", "tensors[0].param: '.x' is not the name of an attribute"},
        {"ParamTwice", "/layers/0/tensors/0/param", "model.block0.autoep_down", "occurs twice"},
        {"Dtype", "/layers/0/tensors/0/dtype", "I64", "tensors[0].dtype: this build does not know 'I64'"},
        {"Dims", "/layers/0/tensors/0/shape", Json({4, 10}), "tensors[0].shape: expected 3 sizes for gate_up, found 2"},
        {"Experts", "/layers/0/tensors/0/shape/0", 8, "tensors[0].shape: expected 4 experts first, found 8"},
        {"Overflow", "/layers/0/tensors/0/shape/1", INT64_MAX, "is larger than any file"},
        {"NoSource", "/layers/0/tensors/0/source", Json::array(), "tensors[0].source: the parts cover 0 of 40 rows"},
        {"SourceName", "/layers/0/tensors/0/source/0/tensor", "", "source[0].tensor: is empty"},
        {"SourceOutside", "/layers/0/tensors/0/source/0/row_begin", 6,
         "source[0]: lies outside the tensor's 4 experts and 10 rows"},
        {"SourceHuge", "/layers/0/tensors/0/source/0/expert_count", INT64_MAX, "source[0]: lies outside"},
        {"SourceTwice", "/layers/0/tensors/0/source/1/row_begin", 4, "source[1]: covers rows that part 0 covers too"},
        {"SourceHole", "/layers/0/tensors/0/source/1/row_count", 4, "source: the parts cover 39 of 40 rows"},
        {"SourceStep", "/layers/0/tensors/0/source/0/source_row_step", 0, "source_row_step"},
        {"NoPieces", "/layers/0/tensors/0/pieces", Json::array(), "pieces: expected one for each of 2 ranks, found 0"},
        {"PieceRank", "/layers/0/tensors/0/pieces/1/rank", 0, "pieces[1].rank: expected 1, found 0"},
        {"PieceShape", "/layers/0/tensors/0/pieces/0/shape", Json({3, 10, 6}),
         "pieces[0].shape: expected [2, 10, 6], found [3, 10, 6]"},
        {"PieceBytes", "/layers/0/tensors/0/pieces/0/bytes", 479, "pieces[0].bytes: expected 480, found 479"},
        {"PieceHash", "/layers/0/tensors/0/pieces/0/sha256", std::string(64, 'Z'), "pieces[0].sha256: expected 64"},
    }),
    [](const testing::TestParamInfo<Variant>& info) { return info.param.name; });

TEST(Manifest, LabelsDiffer) {
  Json json = Json::parse(ToJson(SampleManifest({.layers = 2})));
  json["layers"][1]["label"] = json["layers"][0]["label"];
  ExpectRefused(json, "layers[1].label: 'model.block0#0123' occurs twice");
}

TEST(Manifest, BiasesHaveTwoSizes) {
  Manifest manifest = SampleManifest();
  ManifestTensor bias{.role = "down_bias", .param = "b", .dtype = "F16", .shape = {4, 6}};
  bias.source = {{.tensor = "experts.bias", .expert_count = 4, .row_count = 6}};
  for (int64_t rank = 0; rank < 2; ++rank) {
    bias.pieces.push_back({.rank = rank, .shape = {2, 6}, .bytes = 24, .sha256 = SampleHash('d')});
  }
  manifest.layers[0].tensors.push_back(bias);
  const Result<Manifest> read = ParseManifest(ToJson(manifest));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_TRUE(*read == manifest);
}

TEST(Manifest, TextThatIsNotJsonIsRefused) {
  EXPECT_EQ(ParseManifest("").status().code(), Code::kPlugin);
  EXPECT_EQ(ParseManifest("[]").status().code(), Code::kPlugin);
  EXPECT_EQ(ParseManifest(ToJson(SampleManifest()) + "x").status().code(), Code::kPlugin);
  std::string twice = ToJson(SampleManifest());
  twice.insert(1, "\"version\": 1,");
  EXPECT_THAT(ParseManifest(twice).status().message(), HasSubstr("version"));
}

TEST(Manifest, IsReadFromADirectory) {
  const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / "manifest_directory";
  std::filesystem::create_directories(directory);
  std::ofstream(directory / kManifestName) << ToJson(SampleManifest());
  const Result<Manifest> read = ReadManifest(directory.string());
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_TRUE(*read == SampleManifest());

  std::ofstream(directory / kManifestName) << "{}";
  EXPECT_THAT(ReadManifest(directory.string()).status().message(), StartsWith((directory / kManifestName).string() + ": "));
  std::filesystem::remove(directory / kManifestName);
  EXPECT_EQ(ReadManifest(directory.string()).status().code(), Code::kInput);
  EXPECT_THAT(ReadManifest(directory.string()).status().message(), HasSubstr("autoep convert"));
}

TEST(Manifest, FileNamesCountRanksWithFiveDigits) {
  EXPECT_EQ(ShardName(2, 8), "experts-00002-of-00008.safetensors");
  EXPECT_EQ(PerRankModelName(2, 8), "rank-00002-of-00008.pt");
}

}  // namespace
}  // namespace autoep::contract

// SPDX-License-Identifier: Apache-2.0
#include "presets/registry.h"

#include <filesystem>
#include <set>

#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

const PresetRegistry& Registry() { return PresetRegistry::Builtin(); }

// Every preset file is in the build, under the name of its family, and carries a test.
TEST(Builtin, HoldsEveryYamlFile) {
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator("presets")) {
    if (entry.path().extension() == ".yaml") files.insert(entry.path().string());
  }
  ASSERT_GE(files.size(), 29u);
  std::set<std::string> embedded;
  for (const Preset& preset : Registry().presets()) {
    embedded.insert(preset.origin);
    EXPECT_EQ(preset.origin, "presets/" + preset.name + ".yaml");
    EXPECT_EQ(preset.text, ReadBytes(preset.origin));
    EXPECT_FALSE(preset.test.model_class.empty()) << preset.name;
    EXPECT_FALSE(preset.test.transformers.empty()) << preset.name;
    EXPECT_FALSE(preset.model_classes.empty()) << preset.name;
  }
  EXPECT_EQ(embedded, files);
}

TEST(Find, KnowsNamesAndSuggests) {
  EXPECT_EQ((*Registry().Find("mixtral"))->name, "mixtral");
  EXPECT_THAT(Registry().Find("mixtrl"),
              StatusIs(Code::kUsage, "there is no preset 'mixtrl' (did you mean 'mixtral'?); the presets are "));
  EXPECT_THAT(Registry().Find("\x1B[31m"), StatusIs(Code::kUsage, "there is no preset '\\x1b[31m'; the presets are "));
}

TEST(FindOrLoad, TakesANameOrAPath) {
  const TempFolder folder;
  WriteBytes(folder / "mine.yaml", "name: mine\nblock: B\nrouter: r\nexperts: [{layout: stacked, path: e, up: u, down: d}]\n");
  EXPECT_EQ((*FindOrLoadPreset("qwen3_moe"))->name, "qwen3_moe");
  EXPECT_EQ((*FindOrLoadPreset(folder / "mine.yaml"))->name, "mine");
  EXPECT_THAT(FindOrLoadPreset("qwen3"), StatusIs(Code::kUsage, "there is no preset 'qwen3'"));
  EXPECT_THAT(FindOrLoadPreset("none.yaml"), StatusIs(Code::kUsage, "none.yaml: there is no such file"));
}

TEST(Create, RefusesTwoOfOneName) {
  std::vector<Preset> twice = Registry().presets();
  twice.push_back(twice.front());
  EXPECT_THAT(PresetRegistry::Create(twice), StatusIs(Code::kUsage, "is also that of"));
}

constexpr char kMangled[] = "__torch__.transformers.models.mixtral.modeling_mixtral.___torch_mangle_309.MixtralSparseMoeBlock";
const std::vector<std::string> kStacked = {"gate.weight", "experts.gate_up_proj", "experts.down_proj"};
const std::vector<std::string> kSeparate = {"gate.weight", "experts.0.w1.weight", "experts.0.w2.weight", "experts.0.w3.weight"};

TEST(MatchFamily, ByClassAndTensors) {
  for (const auto& tensors : {kStacked, kSeparate}) {
    const auto match = Registry().MatchFamily({kMangled, {"gate", "experts"}, tensors});
    ASSERT_TRUE(match.has_value());
    EXPECT_EQ(match->preset->name, "mixtral");
    EXPECT_TRUE(match->by_class);
  }
  const auto qwen = Registry().MatchFamily({"Qwen3MoeSparseMoeBlock", {"gate", "experts"}, kStacked});
  ASSERT_TRUE(qwen.has_value());
  EXPECT_EQ(qwen->preset->name, "qwen3_moe");
}

TEST(MatchFamily, AClassWithOtherTensorsIsNotTheFamily) {
  EXPECT_FALSE(Registry().MatchFamily({kMangled, {"gate", "experts"}, {"gate.weight", "experts.kernel"}}).has_value());
  // gate and up, but no down
  EXPECT_FALSE(Registry().MatchFamily({kMangled, {"gate", "experts"}, {"experts.0.w1.weight", "experts.0.w3.weight"}}).has_value());
}

TEST(MatchFamily, AHandWrittenBlockByItsNames) {
  const std::vector<std::string> tensors = {"experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"};
  const auto match = Registry().MatchFamily({"__torch__.my.DenseMoe", {"router", "experts"}, tensors});
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->preset->name, "dbrx");
  EXPECT_FALSE(match->by_class);
  EXPECT_EQ(match->preset->RoleOf("experts.mlp.v1"), ExpertRole::kUp);
}

TEST(MatchFamily, NamesThatFitSeveralFamiliesOrNoneSayNothing) {
  EXPECT_FALSE(Registry().MatchFamily({"Moe", {"gate", "experts"}, kStacked}).has_value());
  EXPECT_FALSE(Registry().MatchFamily({"Moe", {"gate", "experts"}, kSeparate}).has_value());  // Mixtral, MiniMax, Phi-MoE
  EXPECT_FALSE(Registry().MatchFamily({"Moe", {"scorer", "experts"}, kSeparate}).has_value());
  EXPECT_FALSE(Registry().MatchFamily({"", {}, {}}).has_value());
}

TEST(MatchLayout, SaysWhichLayout) {
  const Preset& mixtral = **Registry().Find("mixtral");
  EXPECT_EQ(MatchLayout(mixtral, {"", {}, kStacked})->kind, ExpertLayout::Kind::kStacked);
  EXPECT_EQ(MatchLayout(mixtral, {"", {}, kSeparate})->kind, ExpertLayout::Kind::kSeparate);
  EXPECT_EQ(MatchLayout(mixtral, {"", {}, {"gate.weight"}}), nullptr);
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
#include "presets/custom_preset.h"

#include <fstream>

#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

constexpr char kGood[] = R"(name: my_moe
moe_layer_pattern: model\.layers\.\d+\.mlp
router_pattern: gate
expert_pattern: experts
expert_w1: w1
expert_w2: w2
expert_w3: w3
num_experts_attr: num_experts
top_k_attr: top_k
)";

Result<CustomPreset> Parse(std::string_view text) {
  const auto root = YamlValue::Parse(text, "f.yaml");
  if (!root.ok()) return root.status();
  return ParseCustomPreset(*root);
}

// kGood with its first `from` replaced.
std::string With(std::string_view from, std::string_view to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(ParseCustomPreset, ReadsEveryKey) {
  const auto preset = Parse(kGood);
  ASSERT_THAT(preset, IsOk());
  EXPECT_EQ(preset->name, "my_moe");
  EXPECT_TRUE(preset->moe_layer_pattern->Matches("model.layers.11.mlp"));
  EXPECT_FALSE(preset->moe_layer_pattern->Matches("model.layers.11.mlp.experts"));
  EXPECT_EQ(preset->router_pattern, "gate");
  EXPECT_EQ(preset->expert_pattern, "experts");
  EXPECT_EQ(preset->expert_w1, "w1");
  EXPECT_EQ(preset->expert_w2, "w2");
  EXPECT_EQ(preset->expert_w3, "w3");
  EXPECT_EQ(preset->num_experts_attr, "num_experts");
  EXPECT_EQ(preset->top_k_attr, "top_k");
}

TEST(ParseCustomPreset, NullMeansAbsent) {
  const auto preset = Parse(With("expert_w3: w3", "expert_w3: null"));
  ASSERT_THAT(preset, IsOk());
  EXPECT_FALSE(preset->expert_w3.has_value());
  EXPECT_EQ(Parse("moe_layer_pattern: m\n")->name, "custom");
}

TEST(ParseCustomPreset, RefusesWithPlaceAndSentence) {
  EXPECT_THAT(Parse(With("router_pattern", "router_patern")),
              StatusIs(Code::kUsage, "f.yaml:3:1: unknown key 'router_patern' (did you mean 'router_pattern'?)"));
  EXPECT_THAT(Parse(With("router_pattern: gate", "expert_w1: gate")), StatusIs(Code::kUsage, "the key 'expert_w1' occurs twice"));
  EXPECT_THAT(Parse(With("router_pattern: gate", "router_pattern: yes")),
              StatusIs(Code::kUsage, "f.yaml:3:17: expected a string (put it in quotes), found 'yes'"));
  EXPECT_THAT(Parse(With("top_k_attr: top_k", "top_k_attr: 012")),
              StatusIs(Code::kUsage, "f.yaml:9:13: expected a string (put it in quotes), found '012'"));
  EXPECT_THAT(Parse(With("expert_pattern: experts", "expert_pattern: [experts]")),
              StatusIs(Code::kUsage, "f.yaml:4:17: expected a string, found a list"));
  EXPECT_THAT(
      Parse(With("expert_pattern: experts", "expert_pattern: mlp.experts")),
      StatusIs(Code::kUsage, "f.yaml:4:17: expert_pattern is the name of one attribute, without dots; found 'mlp.experts'"));
  EXPECT_THAT(Parse(With("expert_pattern: experts", "expert_pattern: ''")), StatusIs(Code::kUsage, "without dots; found ''"));
  EXPECT_THAT(Parse(With("model\\.", "(model")), StatusIs(Code::kUsage, "f.yaml:2:20: '(modellayers"));
  EXPECT_THAT(Parse(With("expert_w2: w2\n", "")),
              StatusIs(Code::kUsage, "f.yaml:5:12: expert_w1 and expert_w2 are needed together"));
  EXPECT_THAT(Parse("moe_layer_pattern: m\nexpert_w3: w3\n"), StatusIs(Code::kUsage, "f.yaml:2:12: expert_w3 needs expert_w1"));
  EXPECT_THAT(Parse("router_pattern: gate\n"), StatusIs(Code::kUsage, "f.yaml:1:1: the key 'moe_layer_pattern' is missing"));
}

TEST(ChoosePreset, TellsAFamilyFromACustomPreset) {
  const auto family = ChoosePreset("mixtral");
  ASSERT_THAT(family, IsOk());
  EXPECT_EQ(family->family->name, "mixtral");
  EXPECT_EQ(family->custom, nullptr);
  const TempFolder folder;
  const std::string path = folder / "mine.yaml";
  std::ofstream(path) << kGood;
  const auto custom = ChoosePreset(path);
  ASSERT_THAT(custom, IsOk());
  EXPECT_EQ(custom->family, nullptr);
  EXPECT_EQ(custom->custom->name, "my_moe");
  std::ofstream(path) << "name: mine\nblock: Mine\n";
  EXPECT_THAT(ChoosePreset(path), StatusIs(Code::kUsage, "the key 'router' is missing"));
}

}  // namespace
}  // namespace autoep

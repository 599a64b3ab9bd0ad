// SPDX-License-Identifier: Apache-2.0
#include "presets/preset.h"

#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kGood[] = R"(name: my_family
block: MyMoe|MyOtherMoe
router: gate
experts:
  - layout: separate
    path: experts
    gate: w1
    up: w3
    down: w2
  - layout: stacked
    path: experts(\.mlp)?
    gate_up: gate_up_proj
    down: down_proj
facts:
  activation: silu_gated
  weights_act: after
  router: {scores: softmax, renorm: true}
)";

Result<Preset> Parse(std::string_view text) { return ParsePreset(text, "f.yaml"); }

// kGood with its first `from` replaced.
std::string With(std::string_view from, std::string_view to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(ParsePreset, ReadsEveryPart) {
  const auto preset = Parse(kGood);
  ASSERT_THAT(preset, IsOk());
  EXPECT_EQ(preset->name, "my_family");
  EXPECT_EQ(preset->title, "my_family");
  EXPECT_TRUE(preset->block.Matches("MyOtherMoe"));
  EXPECT_FALSE(preset->block.Matches("MyMoeBlock"));
  EXPECT_EQ(preset->layouts.size(), 2u);
  EXPECT_EQ(preset->facts.router.at("renorm"), "true");
  EXPECT_EQ(preset->text, kGood);
}

TEST(Preset, RoleOfATensorOfTheBlock) {
  const Preset preset = *Parse(kGood);
  EXPECT_EQ(preset.RoleOf("experts.0.w1.weight"), ExpertRole::kGate);
  EXPECT_EQ(preset.RoleOf("experts.127.w3.weight"), ExpertRole::kUp);
  EXPECT_EQ(preset.RoleOf("experts.7.w2.bias"), ExpertRole::kDown);
  EXPECT_EQ(preset.RoleOf("experts.expert_7.w2.weight"), ExpertRole::kDown);
  EXPECT_EQ(preset.RoleOf("experts.gate_up_proj"), ExpertRole::kGateUp);
  EXPECT_EQ(preset.RoleOf("experts.mlp.down_proj"), ExpertRole::kDown);
  EXPECT_EQ(preset.RoleOf("experts.down_proj_bias"), ExpertRole::kDown);
  for (const char* other : {"gate.weight", "experts.0.w4.weight", "experts.w1.weight", "shared.0.w1.weight", "experts.x.w1.weight",
                            "experts.0.gate_up_proj", "w1.weight", "", "."}) {
    EXPECT_EQ(preset.RoleOf(other), std::nullopt) << other;
  }
}

TEST(Preset, ParametersInTheBlockItself) {
  const auto preset = Parse(
      "name: granite\nblock: GraniteMoeMoE\nrouter: router\nexperts:\n  - layout: stacked\n    path: ''\n"
      "    gate_up: input_linear\n    down: output_linear\n");
  ASSERT_THAT(preset, IsOk());
  EXPECT_EQ(preset->RoleOf("input_linear.weight"), ExpertRole::kGateUp);
  EXPECT_EQ(preset->RoleOf("output_linear.weight"), ExpertRole::kDown);
  EXPECT_EQ(preset->RoleOf("router.layer.weight"), std::nullopt);
}

TEST(Preset, StorageOfALayout) {
  const auto preset = Parse(
      "name: a\nblock: A\nrouter: r\nexperts:\n"
      "  - {layout: flat, path: experts.mlp, gate: w1, up: v1, down: w2, transposed: [down]}\n"
      "  - {layout: stacked, path: experts, gate_up: gate_up_proj, down: down_proj, interleaved: true}\n");
  ASSERT_THAT(preset, IsOk());
  EXPECT_EQ(preset->layouts[0].kind, ExpertLayout::Kind::kFlat);
  EXPECT_EQ(preset->RoleOf("experts.mlp.v1"), ExpertRole::kUp);
  EXPECT_THAT(preset->layouts[0].transposed, ElementsAre(ExpertRole::kDown));
  EXPECT_FALSE(preset->layouts[0].interleaved);
  EXPECT_THAT(preset->layouts[1].transposed, IsEmpty());
  EXPECT_TRUE(preset->layouts[1].interleaved);
}

TEST(Preset, DisagreementsAreSentences) {
  const Preset preset = *Parse(kGood);
  EXPECT_THAT(preset.Disagreements({"silu_gated", "after", {{"scores", "softmax"}, {"renorm", "true"}}}), IsEmpty());
  EXPECT_THAT(preset.Disagreements({"gelu_gated", "input", {{"scores", "softmax"}, {"renorm", "false"}}}),
              ElementsAre("the activation is gelu_gated and in a my_family it is silu_gated",
                          "the place where the weights act is input and in a my_family it is after",
                          "the router's renorm is false and in a my_family it is true"));
  EXPECT_THAT(preset.Disagreements({}), IsEmpty());
}

TEST(BareClassName, DropsModulesAndMangling) {
  EXPECT_EQ(BareClassName("__torch__.transformers.models.mixtral.modeling_mixtral.___torch_mangle_309.MixtralSparseMoeBlock"),
            "MixtralSparseMoeBlock");
  EXPECT_EQ(BareClassName("Moe"), "Moe");
  EXPECT_EQ(BareClassName(""), "");
}

TEST(ParsePreset, RefusesWithPlaceAndSentence) {
  EXPECT_THAT(Parse(With("router: gate", "ruoter: gate")),
              StatusIs(Code::kUsage, "f.yaml:3:1: unknown key 'ruoter' (did you mean 'router'?)"));
  EXPECT_THAT(Parse(With("router: gate\n", "")), StatusIs(Code::kUsage, "f.yaml:1:1: the key 'router' is missing"));
  EXPECT_THAT(Parse(With("name: my_family", "name: My-Family")),
              StatusIs(Code::kUsage, "f.yaml:1:7: a family's name has lower-case"));
  EXPECT_THAT(Parse(With("name: my_family", "name: 012")),
              StatusIs(Code::kUsage, "f.yaml:1:7: expected a string (put it in quotes), found '012'"));
  EXPECT_THAT(Parse(With("MyMoe|", "(")), StatusIs(Code::kUsage, "f.yaml:2:8: '(MyOtherMoe' is not a regular expression"));
  EXPECT_THAT(Parse(With("separate", "seperate")),
              StatusIs(Code::kUsage, "f.yaml:5:13: expected separate, stacked or flat, found 'seperate' (did you mean"));
  EXPECT_THAT(Parse(With("down: w2", "down: w2\n    transposed: [down, gate_up]")),
              StatusIs(Code::kUsage, "f.yaml:10:17: 'gate_up' is not one of the layout's tensors"));
  EXPECT_THAT(Parse(With("down: w2", "down: w2\n    interleaved: true")),
              StatusIs(Code::kUsage, "only gate_up can be interleaved"));
  EXPECT_THAT(Parse(With("    down: w2\n", "")), StatusIs(Code::kUsage, "the key 'down' is missing"));
  EXPECT_THAT(Parse(With("    up: w3\n", "")), StatusIs(Code::kUsage, "expected gate_up and down; gate, up and down"));
  EXPECT_THAT(Parse(With("up: w3", "up: w1")), StatusIs(Code::kUsage, "'w1' is both gate and up"));
  EXPECT_THAT(Parse(With("    gate: w1\n", "")),
              StatusIs(Code::kUsage, "the activation silu_gated needs a gate, and a layout lacks one"));
  EXPECT_THAT(Parse(With("silu_gated", "relu")), StatusIs(Code::kUsage, "the activation relu has no gate, and a layout has one"));
  EXPECT_THAT(Parse(With("silu_gated", "swish")),
              StatusIs(Code::kUsage, "f.yaml:15:15: 'swish' is not an activation that the experts op has"));
  EXPECT_THAT(Parse(With("weights_act: after", "weights_act: before")),
              StatusIs(Code::kUsage, "expected after or input, found 'before'"));
  EXPECT_THAT(Parse(With("renorm: true", "renorm: [1]")), StatusIs(Code::kUsage, "expected a word, a number, true or false"));
  EXPECT_THAT(Parse(With("renorm: true", "renorm: yes")), StatusIs(Code::kUsage, "expected true, false, a number, or a string"));
  EXPECT_THAT(Parse("name: a\nblock: b\nrouter: c\nexperts: []\n"),
              StatusIs(Code::kUsage, "f.yaml:4:10: expected at least one layout"));
  EXPECT_THAT(Parse("just words"), StatusIs(Code::kUsage, "f.yaml:1:1: expected a map"));
}

TEST(LoadPreset, ReadsAFileOfTheUser) {
  const TempFolder folder;
  WriteBytes(folder / "mine.yaml", kGood);
  EXPECT_EQ(LoadPreset(folder / "mine.yaml")->name, "my_family");
  EXPECT_THAT(LoadPreset(folder / "none.yaml"), StatusIs(Code::kUsage, "there is no such file"));
}

}  // namespace
}  // namespace autoep

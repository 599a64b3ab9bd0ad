// SPDX-License-Identifier: Apache-2.0
// The walk over modules: which one is the block, and how refusals travel.
#include "passes/detect/detect.h"

#include <gtest/gtest.h>

#include "presets/preset.h"
#include "tests/passes/detect/blocks.h"

namespace autoep::testing {
namespace {

torch::jit::Module Parent(const torch::jit::Module& child, const std::string& name) {
  torch::jit::Module parent("__torch__.tests.Parent", child._ivalue()->compilation_unit(), /*shouldMangle=*/true);
  parent.register_module(name, child);
  parent.define("def forward(self, hidden: Tensor) -> Tensor:\n    return self." + name + ".forward(hidden) + hidden\n");
  return parent;
}

TEST(Detect, TheLowestModuleThatHoldsRouterAndExpertsIsTheBlock) {
  const Detection detection = Detect(Parent(Parent(MakeBlock(LoopSource(SparseExpert())), "mlp"), "layer"));
  EXPECT_TRUE(detection.refusals.empty());
  ASSERT_EQ(detection.layers.size(), 1u);
  EXPECT_EQ(detection.layers[0].path, "layer.mlp");
  EXPECT_EQ(detection.layers[0].class_name, "Block");
  EXPECT_EQ(detection.layers[0].family, "unknown");
  EXPECT_EQ(detection.layers[0].tensors[1].parts[0].tensor, "layer.mlp.w2_0");
}

TEST(Detect, ADenseModelHasNeitherLayersNorRefusals) {
  const Detection detection =
      Detect(Parent(MakeBlock("def forward(self, hidden: Tensor) -> Tensor:\n    return torch.linear(hidden, self.gate)\n"), "mlp"));
  EXPECT_TRUE(detection.layers.empty());
  EXPECT_TRUE(detection.refusals.empty());
}

TEST(Detect, ARefusalNamesTheBlockOnce) {
  const std::string source = Replace(LoopSource(SparseExpert()), "ids == 4", "ids == 3");
  const Detection detection = Detect(Parent(Parent(MakeBlock(source), "mlp"), "layer"));
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_EQ(detection.refusals[0].path, "layer.mlp");
}

TEST(Detect, ARouterWithoutExpertsIsReportedWhereItStands) {
  const std::string source = "def forward(self, hidden: Tensor) -> Tensor:\n"
                             "    w, ids = torch.topk(torch.softmax(torch.linear(hidden, self.gate), -1), 2, -1)\n    return w\n";
  const Detection detection = Detect(Parent(MakeBlock(source), "gate"));
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_EQ(detection.refusals[0].path, "gate");
}

// The block's own layout: gate_up [E, 2I, H] and down [E, H, I].
Preset StackedPreset() {
  Preset preset;
  preset.name = "moe";
  ExpertLayout layout;
  layout.kind = ExpertLayout::Kind::kStacked;
  layout.experts = {"", std::regex("")};
  layout.names = {{ExpertRole::kGateUp, "gate_up"}, {ExpertRole::kDown, "down"}};
  preset.layouts = {layout};
  return preset;
}

TEST(Detect, APresetWithTheLayoutOfTheGraphNamesTheLayer) {
  const Preset preset = StackedPreset();
  const Detection detection = Detect(Parent(MakeBlock(GroupedMmSource()), "mlp"), {.preset = &preset});
  ASSERT_EQ(detection.layers.size(), 1u) << detection.refusals[0].predicate;
  EXPECT_EQ(detection.layers[0].family, "moe");
}

void ExpectContradiction(const Preset& preset, const std::string& source, const std::string& difference) {
  const Detection detection = Detect(Parent(MakeBlock(source), "mlp"), {.preset = &preset});
  EXPECT_TRUE(detection.layers.empty());
  ASSERT_EQ(detection.refusals.size(), 1u);
  EXPECT_EQ(detection.refusals[0].predicate, "a block of the family moe must have its facts: " + difference);
}

TEST(Detect, APresetMustNotContradictHowTheGraphReadsTheTensors) {
  Preset preset = StackedPreset();
  preset.layouts[0].transposed = {ExpertRole::kDown};
  ExpectContradiction(preset, GroupedMmSource(), "down is stored as [out, in] and in a moe it is stored as [in, out]");
  preset = StackedPreset();
  preset.layouts[0].interleaved = true;
  ExpectContradiction(preset, GroupedMmSource(), "gate_up is gate and then up and in a moe it is gate and up by turns");
  preset = StackedPreset();
  const std::string up_first = Replace(GroupedMmSource(), "gate, up = torch.chunk", "up, gate = torch.chunk");
  ExpectContradiction(preset, up_first, "gate_up is up and then gate and in a moe it is gate and then up");
  const std::string by_turns =
      Replace(GroupedMmSource(), "gate, up = torch.chunk(both, 2, -1)", "gate, up = both[..., ::2], both[..., 1::2]");
  ExpectContradiction(preset, by_turns, "gate_up is gate and up by turns and in a moe it is gate and then up");
  preset.layouts[0].names = {{ExpertRole::kDown, "gate_up"}, {ExpertRole::kGateUp, "down"}};
  ExpectContradiction(preset, GroupedMmSource(),
                      "gate_up is gate_up and in a moe it is down and down is down and in a moe it is gate_up");
}

TEST(Detect, APresetMustNotExchangeGateAndUpOfExpertsApart) {
  Preset preset = StackedPreset();
  preset.layouts[0].names = {{ExpertRole::kGate, "flat_w3"}, {ExpertRole::kUp, "flat_w1"}, {ExpertRole::kDown, "flat_w2"}};
  preset.layouts[0].kind = ExpertLayout::Kind::kFlat;
  preset.layouts[0].transposed = {ExpertRole::kDown};
  const std::string turn = R"(
    found = torch.where(ids == #)
    rows = x[found[0]]
    h = torch.silu(rows.matmul(self.flat_w1.view(6, 12, 16)[#].t())) * rows.matmul(self.flat_w3.view(6, 12, 16)[#].t())
    out.index_add_(0, found[0], h.matmul(self.flat_w2.view(6, 12, 16)[#]) * w[found[0], found[1]].unsqueeze(-1))
)";
  ExpectContradiction(preset, LoopSource(turn), "flat_w1 is gate and in a moe it is up");
}

TEST(Detect, DoesNotChangeTheModel) {
  const torch::jit::Module model = Parent(MakeBlock(GroupedMmSource()), "mlp");
  const std::string before = model.dump_to_str(true, false, false);
  EXPECT_EQ(Detect(model).layers.size(), 1u);
  EXPECT_EQ(model.dump_to_str(true, false, false), before);
}

}  // namespace
}  // namespace autoep::testing

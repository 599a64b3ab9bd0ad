// SPDX-License-Identifier: Apache-2.0
// Layers and refusals as text and JSON.
#include "tools/layer_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

MoeLayer MakeLayer(const std::string& path) {
  MoeLayer layer;
  layer.path = path;
  layer.family = "mixtral";
  layer.form = "grouped_mm";
  layer.num_experts = 8;
  layer.top_k = 2;
  layer.hidden = 64;
  layer.intermediate = 96;
  layer.activation = "silu_gated";
  layer.router = {{"renorm", "true"}, {"scores", "softmax"}};
  ExpertTensor tensor;
  tensor.role = "gate_up";
  tensor.shape = {8, 192, 64};
  tensor.dtype = at::kBFloat16;
  tensor.parts = {{"gate_up_proj", 0, 8, 0, 192, 0, 1, false}};
  layer.tensors.push_back(tensor);
  return layer;
}

class LayerReportTest : public ::testing::Test {
 protected:
  LayerReportTest() { console_.SetColor(When::kNever); }
  Console console_;
};

TEST_F(LayerReportTest, OneRowALayer) {
  EXPECT_EQ(LayerTable({MakeLayer("layers.0.mlp"), MakeLayer("")}, console_),
            "layer         family   form        experts  top-k  hidden x intermediate  activation  dtype  expert bytes\n"
            "layers.0.mlp  mixtral  grouped_mm        8      2  64 x 96                silu_gated  BF16      192.0 KiB\n"
            "(root)        mixtral  grouped_mm        8      2  64 x 96                silu_gated  BF16      192.0 KiB\n");
}

TEST_F(LayerReportTest, LayersOfOneModuleAreNumbered) {
  EXPECT_THAT(LayerTable({MakeLayer("m"), MakeLayer("m")}, console_), AllOf(HasSubstr("\nm[0] "), HasSubstr("\nm[1] ")));
  EXPECT_THAT(LayerTable({MakeLayer(""), MakeLayer("")}, console_), AllOf(HasSubstr("\n(root)[0] "), HasSubstr("\n(root)[1] ")));
}

TEST_F(LayerReportTest, EqualRemarksAreSaidOnce) {
  std::vector<MoeLayer> layers = {MakeLayer("a"), MakeLayer("b"), MakeLayer("c")};
  layers[2].router["scores"] = "sigmoid";
  layers[1].notes = {"look here"};
  layers[0].shared_experts = {"shared_expert", "shared_gate"};
  EXPECT_EQ(LayerRemarks(layers),
            "Router of a and 1 more: renorm true, scores softmax\n"
            "Router of c: renorm true, scores sigmoid\n"
            "Experts of a and 2 more: weights act after; gate_up: one tensor for all; no biases\n"
            "Shared experts of a: shared_expert and shared_gate\n"
            "Note on b: look here\n");
}

TEST_F(LayerReportTest, SaysHowTheExpertsAreStored) {
  MoeLayer layer = MakeLayer("a");
  layer.router.clear();
  layer.weights_on_input = true;
  layer.activation_args = {1.702, 7};
  layer.tensors.push_back(layer.tensors[0]);
  layer.tensors[1].role = "gate_up_bias";
  layer.tensors[1].shape = {8, 192};
  ExpertTensor& gate_up = layer.tensors[0];
  gate_up.parts = {{"gate_up", 0, 8, 0, 96, 0, 2, true}, {"gate_up", 0, 8, 96, 96, 1, 2, true}};
  EXPECT_EQ(
      LayerRemarks({layer}),
      "Experts of a: weights act on the input; gate_up: one tensor for all, gate and up alternating, stored [in, out]; biases: "
      "gate_up_bias; activation's numbers 1.702, 7\n");
  gate_up.parts.clear();
  for (int64_t e = 0; e < 8; ++e) {
    gate_up.parts.push_back({"w1", e, 1, 0, 96, 0, 1, false});
    gate_up.parts.push_back({"w3", e, 1, 96, 96, 0, 1, false});
  }
  EXPECT_THAT(LayerRemarks({layer}), HasSubstr("gate_up: one tensor an expert, gate and up apart; biases"));
}

TEST_F(LayerReportTest, Totals) {
  const std::vector<MoeLayer> layers = {MakeLayer("a"), MakeLayer("b")};
  EXPECT_EQ(TotalExperts(layers), 16);
  EXPECT_EQ(TotalExpertBytes(layers), 2 * 8 * 192 * 64 * 2);
}

TEST_F(LayerReportTest, RefusalsNameModulePredicateNodeAndSource) {
  const Refusal refusal = {"layers.1.mlp", "the activation is not one that experts may have", "%3 = aten::tan(%2)", "m.py:12",
                           "y = torch.tan(x)"};
  EXPECT_EQ(RefusalSentence(refusal), "layers.1.mlp: the activation is not one that experts may have, at m.py:12");
  EXPECT_EQ(RefusalList({refusal}),
            "Refused:\n"
            "  layers.1.mlp: the activation is not one that experts may have, at m.py:12\n"
            "    node: %3 = aten::tan(%2)\n"
            "    line: y = torch.tan(x)\n");
  EXPECT_EQ(RefusalList({}), "");
}

TEST_F(LayerReportTest, NoLayersSaysWhy) {
  const Status dense = NoLayersError("m.pt", {});
  EXPECT_EQ(dense.code(), Code::kNoMoe);
  EXPECT_THAT(dense.message(), HasSubstr("a dense model needs no conversion"));
  const Status refused = NoLayersError("m.pt", {{"a", "p", "", "", ""}, {"b", "q", "", "", ""}});
  EXPECT_THAT(refused.message(), HasSubstr("m.pt: no MoE layer that can be rewritten: a: p (and 1 more"));
}

TEST_F(LayerReportTest, NamesFromAFileAreEscaped) {
  EXPECT_THAT(LayerTable({MakeLayer("a\x1b[2J")}, console_), HasSubstr("a\\x1b[2J"));
  EXPECT_THAT(RefusalSentence({"a\nb", "p", "", "", ""}), HasSubstr("a\\x0ab: p"));
}

TEST_F(LayerReportTest, JsonHasEveryFact) {
  const Json json = LayersJson({MakeLayer("a")});
  ASSERT_EQ(json.size(), 1u);
  EXPECT_EQ(json[0]["path"], "a");
  EXPECT_EQ(json[0]["expert_bytes"], 8 * 192 * 64 * 2);
  EXPECT_EQ(json[0]["weights_act"], "after");
  EXPECT_EQ(json[0]["tensors"][0]["shape"], Json({8, 192, 64}));
  EXPECT_EQ(json[0]["tensors"][0]["layout"], "one tensor for all");
  EXPECT_EQ(json[0]["family"], "mixtral");
  EXPECT_EQ(RefusalsJson({{"a", "p", "n", "s", "l"}})[0],
            Json({{"path", "a"}, {"predicate", "p"}, {"node", "n"}, {"source", "s"}, {"line", "l"}}));
}

}  // namespace
}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// --config: which keys choose, which must agree with the graph, and which have no place in one.
#include "tools/ep_config.h"

#include "tests/plugin/io/status_matchers.h"

namespace autoep {
namespace {

Result<EpConfig> Parse(const std::string& keys) { return EpConfig::Parse("expert_parallel:\n" + keys, "c.yaml"); }

MoeLayer Layer() {
  MoeLayer layer;
  layer.num_experts = 16;
  layer.top_k = 4;
  layer.router = {{"scores", "sigmoid"}, {"renorm", "true"},  {"bias", "true"}, {"groups", "true"},
                  {"num_groups", "8"},   {"top_groups", "2"}, {"scale", "2.5"}};
  layer.shared_experts = {"shared_experts"};
  return layer;
}

// What the keys say about a model whose one layer is Layer().
Status Check(const std::string& keys) {
  const auto config = Parse(keys);
  if (!config.ok()) return config.status();
  torch::jit::Module root("Root");
  root.register_attribute("shared_gate", c10::IntType::get(), 1);
  return config->CheckLayers(root, {Layer()});
}

TEST(EpConfig, TakesWhatChooses) {
  const auto config = Parse("  enabled: true\n  autoep_size: 4\n  preset_model: mixtral\n  moe_layer_pattern: 'm'\n");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->ep_size(), 4);
  EXPECT_EQ(config->preset_model(), "mixtral");
  EXPECT_TRUE(config->blocks().moe_layer_pattern->Matches("m"));
  const auto none = Parse("  preset_model: null\n");
  ASSERT_THAT(none, IsOk());
  EXPECT_FALSE(none->ep_size().has_value());
  EXPECT_FALSE(none->preset_model().has_value());
}

TEST(EpConfig, ReadsTheSectionOfADeepSpeedConfig) {
  const auto config = EpConfig::Parse(
      "{\n \"train_batch_size\": 8, \"zero_optimization\": {\"stage\": 1},\n \"expert_parallel\": {\"enabled\": true, "
      "\"autoep_size\": 2, \"top_k\": \"auto\", \"expert_w3\": null}\n}\n",
      "ds.json");
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->ep_size(), 2);
  EXPECT_THAT(EpConfig::Parse("{\"expert_parallel\":\n  {\"autoep_size\": \"two\"}}", "ds.json"),
              StatusIs(Code::kUsage, "ds.json:2:19: expected a whole number"));
}

TEST(EpConfig, AcceptsWhatTheGraphProves) {
  EXPECT_THAT(Check("  top_k: 4\n  score_func: sigmoid\n  score_apply: post\n  route_norm: true\n  routed_scaling_factor: 2.5\n"
                    "  num_expert_groups: 8\n  num_limited_groups: 2\n  has_shared_experts: true\n"
                    "  shared_experts_pattern: shared_experts\n  shared_experts_gate_pattern: shared_gate\n"),
              IsOk());
}

TEST(EpConfig, AcceptsWhatSaysNothing) {
  EXPECT_THAT(Check("  top_k: auto\n  score_func: auto\n  score_apply: auto\n  route_norm: null\n  route_scale: 1.0\n"
                    "  routed_scaling_factor: auto\n  num_expert_groups: null\n  has_shared_experts: null\n"
                    "  load_balance_coeff: null\n  use_grouped_mm: true\n  combine_impl: auto\n  comm_backend: comm\n"
                    "  expert_tensor_parallel_size: 1\n  disable_triton_grouped_mm: false\n"),
              IsOk());
}

TEST(EpConfig, RefusesWhatContradictsTheGraph) {
  EXPECT_THAT(Check("  top_k: 2\n"), StatusIs(Code::kUsage, "c.yaml:2:10: top_k contradicts the graph of (root), which shows 4"));
  EXPECT_THAT(Check("  score_func: softmax\n"), StatusIs(Code::kUsage, "c.yaml:2:15: score_func contradicts"));
  EXPECT_THAT(Check("  score_apply: pre\n"), StatusIs(Code::kUsage, "which shows post"));
  EXPECT_THAT(Check("  route_norm: false\n"), StatusIs(Code::kUsage, "which shows true"));
  EXPECT_THAT(Check("  routed_scaling_factor: 1.0\n"), StatusIs(Code::kUsage, "which shows 2.5"));
  EXPECT_THAT(Check("  route_scale: 3\n"), StatusIs(Code::kUsage, "which shows 2.5"));
  EXPECT_THAT(Check("  num_expert_groups: 1\n"), StatusIs(Code::kUsage, "which shows 8"));
  EXPECT_THAT(Check("  num_limited_groups: 4\n"), StatusIs(Code::kUsage, "which shows 2"));
  EXPECT_THAT(Check("  has_shared_experts: false\n"), StatusIs(Code::kUsage, "which shows shared experts in shared_experts"));
  EXPECT_THAT(Check("  shared_experts_pattern: shared\n"), StatusIs(Code::kUsage, "which shows shared experts in shared_experts"));
  EXPECT_THAT(Check("  shared_experts_gate_pattern: gate\n"), StatusIs(Code::kUsage, "which shows no child of that name"));
}

TEST(EpConfig, RefusesWhatAGraphHasNoPlaceFor) {
  for (const char* line : {"enabled: false", "expert_tensor_parallel_size: 2", "validate_folding_routing: true",
                           "combine_impl: legacy_bmm", "use_grouped_mm: false", "load_balance_coeff: 0", "comm_backend: deepep",
                           "comm_num_sm: 12", "comm_qp_margin: 4", "comm_max_tokens_per_rank: 0", "async_split_plan: true"}) {
    EXPECT_THAT(Check(std::string("  ") + line + "\n"), StatusIs(Code::kUsage, "c.yaml:2:")) << line;
  }
  EXPECT_THAT(EpConfig::Parse("use_data_before_expert_parallelism: true\nexpert_parallel: {}\n", "c.yaml"),
              StatusIs(Code::kUsage, "c.yaml:1:37: a saved graph knows no order of ranks"));
}

TEST(EpConfig, IsStrict) {
  EXPECT_THAT(Parse("  topk: 2\n"), StatusIs(Code::kUsage, "c.yaml:2:3: unknown key 'topk' (did you mean 'top_k'?)"));
  EXPECT_THAT(Parse("  top_k: 2\n  top_k: 2\n"), StatusIs(Code::kUsage, "c.yaml:3:3: the key 'top_k' occurs twice"));
  EXPECT_THAT(Parse("  autoep_size: 012\n"), StatusIs(Code::kUsage, "without leading zeros"));
  EXPECT_THAT(Parse("  autoep_size: 0\n"), StatusIs(Code::kUsage, "expected a whole number, 1 or more"));
  EXPECT_THAT(Parse("  route_norm: yes\n"), StatusIs(Code::kUsage, "expected true or false, found 'yes'"));
  EXPECT_THAT(Parse("  score_func: sigmod\n"), StatusIs(Code::kUsage, "found 'sigmod' (did you mean 'sigmoid'?)"));
  EXPECT_THAT(Parse("  routed_scaling_factor: .nan\n"), StatusIs(Code::kUsage, "expected a number"));
  EXPECT_THAT(EpConfig::Parse("expert_paralel: {}\n", "c.yaml"),
              StatusIs(Code::kUsage, "c.yaml:1:1: the section 'expert_parallel' is missing (did you mean 'expert_parallel'?)"));
  EXPECT_THAT(EpConfig::Parse("expert_parallel: 3\n", "c.yaml"), StatusIs(Code::kUsage, "expected a map"));
  EXPECT_THAT(EpConfig::Load("/nonexistent/c.yaml"), StatusIs(Code::kUsage, "/nonexistent/c.yaml"));
}

}  // namespace
}  // namespace autoep

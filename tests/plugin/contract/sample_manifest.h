// SPDX-License-Identifier: Apache-2.0
// Valid manifests for tests: sizes are chosen by the test, all that depends on them follows.
#pragma once

#include <string>

#include "plugin/contract/manifest.h"

namespace autoep::contract {

struct SampleSizes {
  int64_t ep_size = 2;
  int64_t num_experts = 4;
  int64_t hidden = 6;
  int64_t intermediate = 5;
  int64_t layers = 1;
  std::string dtype = "F32";
  int64_t dtype_bytes = 4;
  bool reversed = false;  // the last rank holds the first experts
};

inline std::string SampleHash(char digit) { return std::string(64, digit); }

// One source part an expert and a half: gate rows and up rows are tensors of their own.
inline ManifestTensor SampleTensor(const SampleSizes& sizes, const std::string& role, int64_t rows, int64_t columns,
                                   int64_t halves) {
  ManifestTensor tensor{.role = role, .param = "autoep_" + role, .dtype = sizes.dtype, .shape = {sizes.num_experts, rows, columns}};
  for (int64_t expert = 0; expert < sizes.num_experts; ++expert) {
    for (int64_t half = 0; half < halves; ++half) {
      tensor.source.push_back({.tensor = "experts." + std::to_string(expert) + "." + role + std::to_string(half) + ".weight",
                               .expert_begin = expert,
                               .row_begin = half * rows / halves,
                               .row_count = rows / halves});
    }
  }
  const int64_t slots = sizes.num_experts / sizes.ep_size;
  for (int64_t rank = 0; rank < sizes.ep_size; ++rank) {
    tensor.pieces.push_back({.rank = rank,
                             .shape = {slots, rows, columns},
                             .bytes = slots * rows * columns * sizes.dtype_bytes,
                             .sha256 = SampleHash('a')});
  }
  return tensor;
}

inline ManifestLayer SampleLayer(const SampleSizes& sizes, int64_t index) {
  const std::string path = "model.block" + std::to_string(index);
  ManifestLayer layer{.path = path,
                      .block = path,
                      .label = path + "#0123",
                      .family = "mixtral",
                      .form = "expert_loop",
                      .num_experts = sizes.num_experts,
                      .top_k = 2,
                      .hidden = sizes.hidden,
                      .intermediate = sizes.intermediate,
                      .activation = "silu_gated",
                      .weights_act = "after",
                      .group_attr = path + ".autoep_group",
                      .placement_attr = path + ".autoep_placement",
                      .router = {{"scores", "softmax"}, {"renorm", "true"}}};
  for (int64_t expert = 0; expert < sizes.num_experts; ++expert) {
    const int64_t slots = sizes.num_experts / sizes.ep_size;
    const int64_t place = sizes.reversed ? sizes.num_experts - 1 - expert : expert;
    layer.placement.push_back({.rank = place / slots, .slot = place % slots});
  }
  layer.tensors = {SampleTensor(sizes, "gate_up", 2 * sizes.intermediate, sizes.hidden, 2),
                   SampleTensor(sizes, "down", sizes.hidden, sizes.intermediate, 1)};
  for (ManifestTensor& tensor : layer.tensors) tensor.param = path + "." + tensor.param;
  return layer;
}

inline Manifest SampleManifest(const SampleSizes& sizes = {}) {
  Manifest manifest{.op_abi = 1,
                    .tool = "autoep 0.1.0",
                    .torch = "2.11.0",
                    .layout = "shared",
                    .ep_size = sizes.ep_size,
                    .plan = "plan-0123",
                    .source = {.digest = SampleHash('0'), .bytes = 4096}};
  manifest.files.push_back({.file = kModelName, .bytes = 100, .sha256 = SampleHash('b')});
  for (int64_t rank = 0; rank < sizes.ep_size; ++rank) {
    manifest.files.push_back({.file = ShardName(rank, sizes.ep_size), .bytes = 1000 + rank, .sha256 = SampleHash('c')});
  }
  for (int64_t index = 0; index < sizes.layers; ++index) manifest.layers.push_back(SampleLayer(sizes, index));
  return manifest;
}

}  // namespace autoep::contract

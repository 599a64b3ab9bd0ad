// SPDX-License-Identifier: Apache-2.0
// MoeLayer: what detection proved about one MoE block. Refusal: why a block that looks like one is not taken.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plugin/contract/manifest.h"

namespace torch::jit {
struct Graph;
struct Node;
}  // namespace torch::jit

namespace autoep {

// One canonical expert tensor and the source tensors that make it up (contract/manifest.h gives the mapping).
struct ExpertTensor {
  std::string role;            // "gate_up", "up", "down", "gate_up_bias", "up_bias", "down_bias"
  std::vector<int64_t> shape;  // canonical, [E, ...]
  at::ScalarType dtype = at::kFloat;
  bool requires_grad = false;
  std::vector<contract::SourcePart> parts;
  std::vector<at::Tensor> sources;  // one a part; storages map the archive, nothing is read
};

// The router's "capacity" where the file's was the trace's example's: as many as there are tokens, so that none is dropped.
inline constexpr char kCapacityOfTokens[] = "tokens";

struct MoeLayer {
  std::string path;        // module path of the block, "" for the root
  std::string class_name;  // the block's class, without mangling
  std::string family = "unknown";
  std::string form;  // "grouped_mm", "batched_mm", "expert_loop", ...
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  std::string activation;  // contract/activation.h
  std::vector<double> activation_args;
  bool weights_on_input = false;
  std::map<std::string, std::string> router;  // "scores": "softmax", "renorm": "true", ... (router.h)
  std::vector<ExpertTensor> tensors;
  std::vector<std::string> shared_experts;    // module paths below the block, left where they are
  std::vector<std::string> consumed_modules;  // module paths relative to the block that only the experts used ("experts")
  std::string rebuilt;             // why the block had to be rebuilt, a sentence: the source is wrong there; "" if it had not
  std::vector<std::string> notes;  // limits a person should know

  int64_t ExpertBytes() const;
};

struct Refusal {
  std::string path;       // module
  std::string predicate;  // the condition that failed, in words
  std::string node;       // the node's printed form, "" if none
  std::string source;     // "modeling_mixtral.py:128" or "code/__torch__/...:12", "" if unknown
  std::string line;       // its text; of a trace, which keeps none, the archive's code
};

// What becomes a Refusal if nothing better is found: a node's text and source are asked for only then.
struct Miss {
  std::string path;
  std::string predicate;
  const torch::jit::Node* node = nullptr;
  std::shared_ptr<const torch::jit::Graph> graph;  // keeps the node
};

struct Detection {
  std::vector<MoeLayer> layers;  // in module order
  std::vector<Refusal> refusals;
};

}  // namespace autoep

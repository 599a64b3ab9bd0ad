// SPDX-License-Identifier: Apache-2.0
// Verification of a converted directory: structure, bytes, numbers. What the subcommand `verify` does, and what `convert`
// does before it publishes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "passes/model/moe_model.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/json.h"
#include "plugin/io/status.h"

namespace autoep {

struct VerifyOptions {
  std::string inputs;        // a safetensors file keyed by argument name; "{rank}" in it is the rank; "" to infer
  bool blocks = false;       // numbers: each MoE block alone, in the memory of one block
  int64_t timeout_s = 1800;  // for one run of all ranks
  uint64_t seed = 20240613;
};

// One comparison: the source against the ranks, on one shape, or one block alone.
struct VerifyCase {
  std::string name;         // "2x12", "model.layers.0.mlp 2x12"
  int64_t tokens = 0;       // of all ranks
  int64_t flips = 0;        // tokens that took another expert at a near tie
  int64_t after_flips = 0;  // tokens that a flip of another token of their sequence may have changed
  double max_error = 0;     // of the tokens compared, relative to the largest output
  double tolerance = 0;
};

struct VerifyReport {
  int64_t ranks = 0;
  int64_t layers = 0;
  int64_t files = 0;               // hashed
  int64_t replicated_tensors = 0;  // of model.pt, equal to the source's byte for byte
  int64_t expert_bytes = 0;        // of the source, each found once among the shards
  bool bytes_proved = false;
  bool blocks = false;
  std::vector<int64_t> rank_bytes;  // expert bytes that each rank held, measured
  std::vector<int64_t> rank_rows;   // rows that each rank's experts processed, measured
  std::vector<VerifyCase> cases;    // empty when the numbers were not asked for
  std::vector<std::string> notes;   // what was not checked and why, sentences

  int64_t Tokens() const;
  int64_t Flips() const;
  double MaxError() const;
  Json ToJson() const;
};

// (a) Every file is there with the manifest's size and digest; model.pt (or each rank's model) parses and carries the EP
// ops of every layer and none of the old expert compute; the shards hold the manifest's tensors. Fails with kVerify.
Status VerifyStructure(const std::string& directory, const contract::Manifest& manifest, VerifyReport* report);

// (b) The source is the one that was converted, each of its expert bytes is found once among the shards, and the tensors
// that every rank has are its own, byte for byte. Fails with kVerify, or kInput for a source whose bytes are damaged.
Status VerifyBytes(const MoeModel& source, const std::string& directory, const contract::Manifest& manifest, VerifyReport* report);

// (c) The source in a process of its own and the converted model on manifest.ep_size processes, every rank with its own
// tokens. Fails with kVerify and a sentence that names the first layer that differs; kUsage when the model's inputs
// cannot be inferred.
Status VerifyNumbers(const std::string& source_path, const std::string& directory, const contract::Manifest& manifest,
                     const VerifyOptions& options, VerifyReport* report);

}  // namespace autoep

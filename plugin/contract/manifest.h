// SPDX-License-Identifier: Apache-2.0
// The manifest, autoep.json: what a converted directory holds, how it was made, and how every expert tensor maps back to
// the source. Written by convert, read by load, verify, inspect, merge. Struct members are the JSON's keys.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "plugin/contract/placement.h"
#include "plugin/io/status.h"

namespace autoep::contract {

inline constexpr char kManifestName[] = "autoep.json";
inline constexpr char kModelName[] = "model.pt";
inline constexpr char kSkeletonName[] = "source.pt-skeleton";
inline constexpr int64_t kManifestVersion = 1;

// Where a piece of a canonical tensor [E, R, C] (or [E, R] for a bias) came from: for e < expert_count and r < row_count,
//   canonical[expert_begin + e, row_begin + r, :] == source[e, source_row_begin + r * source_row_step, :]
// The source is `tensor` seen as [expert_count, rows, C]: one with a dimension less, a Linear's weight or bias (expert_count 1)
// or a stack [expert_count * rows, C], is split along its first; `transposed` means that it is stored as [expert_count, C, rows].
// Where the layer has identity experts, a stack may have an entry for each of them too, behind the others: it belongs to nobody.
struct SourcePart {
  std::string tensor;  // fully qualified parameter name in the source, or "constant:<n>" in a frozen one
  int64_t expert_begin = 0;
  int64_t expert_count = 1;
  int64_t row_begin = 0;
  int64_t row_count = 0;
  int64_t source_row_begin = 0;
  int64_t source_row_step = 1;
  bool transposed = false;
  bool operator==(const SourcePart&) const = default;
};

struct ShardPiece {  // one rank's part of a tensor
  int64_t rank = 0;
  std::vector<int64_t> shape;  // [S, ...]
  int64_t bytes = 0;
  std::string sha256;
  bool operator==(const ShardPiece&) const = default;
};

struct ManifestTensor {
  std::string role;            // "gate_up", "up", "down", "gate_up_bias", "up_bias", "down_bias"
  std::string param;           // parameter name in model.pt and in the shards
  std::string dtype;           // safetensors name: "F32", "BF16", ...
  std::vector<int64_t> shape;  // the whole canonical tensor, [E, ...]
  bool requires_grad = false;
  std::vector<SourcePart> source;
  std::vector<ShardPiece> pieces;  // by rank
  bool operator==(const ManifestTensor&) const = default;
};

struct ManifestLayer {
  std::string path;    // module path of the block in the source, "" for the root
  std::string block;   // module path in model.pt that carries the EP attributes
  std::string label;   // the op's `layer` argument
  std::string family;  // preset name, or "unknown"
  std::string form;    // graph form it was found in
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  std::string activation;
  std::vector<double> activation_args;
  std::string weights_act;     // "after" the expert or on its "input"
  std::string group_attr;      // full attribute name of the group string in model.pt
  std::string placement_attr;  // full attribute name of the placement table in model.pt
  std::vector<ExpertSlot> placement;
  std::map<std::string, std::string> router;  // descriptive facts, for people; identity_experts: see SourcePart
  std::vector<std::string> shared_experts;
  std::string rebuilt;  // why the source is wrong here and its block was rebuilt, a sentence; "" if it was not
  std::vector<ManifestTensor> tensors;
  bool operator==(const ManifestLayer&) const = default;
};

struct ManifestFile {
  std::string file;
  int64_t bytes = 0;
  std::string sha256;
  bool operator==(const ManifestFile&) const = default;
};

struct ManifestSource {
  std::string digest;  // sha256 of the archive's central directory
  int64_t bytes = 0;
  bool operator==(const ManifestSource&) const = default;
};

struct Manifest {
  int64_t version = kManifestVersion;
  int64_t op_abi = 0;
  std::string tool;    // "autoep 0.1.0"
  std::string torch;   // "2.11.0"
  std::string layout;  // "shared" or "per-rank"
  int64_t ep_size = 1;
  std::string plan;  // digest of source, ep size and placements
  ManifestSource source;
  std::vector<ManifestFile> files;  // all files but the manifest itself
  std::vector<ManifestLayer> layers;
  std::vector<std::string> limits;  // what was proved only within limits, sentences
  bool operator==(const Manifest&) const = default;
};

// Deterministic: sorted keys, two spaces, a newline at the end.
std::string ToJson(const Manifest& manifest);
// Strict: unknown, missing or duplicate keys, wrong types, names that are not plain file names, numbers out of range, a
// version this build does not know: kPlugin with a sentence naming the key.
Result<Manifest> ParseManifest(std::string_view text);
Result<Manifest> ReadManifest(const std::string& directory);

// "experts-00002-of-00008.safetensors", "rank-00002-of-00008.pt"
// Experts without weights that a layer's router may choose: its fact identity_experts.
int64_t IdentityExperts(const std::map<std::string, std::string>& router);

std::string ShardName(int64_t rank, int64_t ep_size);
std::string PerRankModelName(int64_t rank, int64_t ep_size);

}  // namespace autoep::contract

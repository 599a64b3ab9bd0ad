// SPDX-License-Identifier: Apache-2.0
// Writing shards: expert tensors from the mapped source, in canonical layout, one expert in memory at a time.
#pragma once

#include <vector>

#include "passes/model/archive.h"
#include "passes/repack/plan.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/output.h"
#include "plugin/io/status.h"

namespace autoep {

struct ShardSet {
  std::vector<contract::ManifestFile> files;                           // by rank
  std::vector<std::vector<std::vector<contract::ShardPiece>>> pieces;  // [layer][tensor][rank]
};

// Writes one safetensors file a rank into `output`, all in one pass over the source. Each source record's CRC is checked
// before its first byte is used (kInput); digests are made of what is written. Else fails as `output` does.
Result<ShardSet> WriteShards(const Plan& plan, Archive& source, StagedDirectory& output);

}  // namespace autoep

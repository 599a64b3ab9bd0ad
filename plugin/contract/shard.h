// SPDX-License-Identifier: Apache-2.0
// A shard: one rank's expert tensors, a safetensors file whose every tensor the manifest names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/contract/manifest.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/status.h"

namespace autoep::contract {

// The tensors of `rank`'s shard, in manifest order: name (ManifestTensor::param), dtype and shape.
// Precondition: 0 <= rank < manifest.ep_size.
std::vector<SafetensorsSpec> ShardTensors(const Manifest& manifest, int64_t rank);

// Checks that `directory`/`name` has the size that the manifest gives. kPlugin: not listed, missing, or another size.
Status CheckListedFile(const Manifest& manifest, const std::string& directory, const std::string& name);

// Opens `rank`'s shard in `directory`, memory-mapped: reads the header only. kPlugin: rank out of range, another layout than
// "shared", file missing or of another size, or other tensors than ShardTensors.
Result<SafetensorsFile> OpenShard(const Manifest& manifest, const std::string& directory, int64_t rank);

// Reads every tensor of an opened shard and compares its sha256 with the manifest's. kPlugin, naming the tensor.
Status CheckShardHashes(const Manifest& manifest, int64_t rank, const SafetensorsFile& shard);

}  // namespace autoep::contract

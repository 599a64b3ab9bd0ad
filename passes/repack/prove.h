// SPDX-License-Identifier: Apache-2.0
// The byte proof: every expert byte of the source is found exactly once in a converted directory. Follows the manifest
// backwards with its own index arithmetic; shares no code with what wrote the shards.
#pragma once

#include <cstdint>
#include <string>

#include "passes/model/moe_model.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"

namespace autoep {

struct ByteProof {
  int64_t source_tensors = 0;
  int64_t bytes = 0;  // of the source's expert tensors, each compared
};

// `source` is the model as it was opened, not the rewritten one. Reads the shards, or the ranks' models, of `directory`.
// kVerify: another source, a source tensor not covered once, a hash or a byte that differs; the sentence names the first
// difference. kInput: a damaged source record.
Result<ByteProof> ProveBytes(const MoeModel& source, const contract::Manifest& manifest, const std::string& directory);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// A converted directory as a loader sees it: its manifest, checked against this library and the models beside it, and one
// rank's expert tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"

namespace autoep {

// The file that `rank` loads: model.pt, or the rank's own model in the per-rank layout.
std::string ModelName(const contract::Manifest& manifest, int64_t rank);

// Reads the manifest and checks what every rank relies on: the op ABI is this library's. kPlugin, or kInput where the
// manifest cannot be read.
Result<contract::Manifest> OpenDirectory(const std::string& directory);

// `rank` is one of the manifest's; its model file has the manifest's size and carries a copy of the same manifest.
// kPlugin, or kInput where the model file is malformed.
Status CheckModelFile(const contract::Manifest& manifest, const std::string& directory, int64_t rank);

// The tensors of `rank`'s shard by parameter name: CPU, contiguous, memory of their own, requires_grad unset. Empty in the
// per-rank layout, whose models hold them. Reads this shard only. `verify_hashes` compares every tensor's sha256 too, which
// reads the shard twice. kPlugin: a shard that is missing or is not what the manifest says. CheckModelFile's failures.
Result<std::map<std::string, at::Tensor>> LoadShard(const contract::Manifest& manifest, const std::string& directory, int64_t rank,
                                                    bool verify_hashes = false);
// The same after OpenDirectory.
Result<std::map<std::string, at::Tensor>> LoadShard(const std::string& directory, int64_t rank);

}  // namespace autoep

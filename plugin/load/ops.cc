// SPDX-License-Identifier: Apache-2.0
// The loader as ops, so that Python reaches it without a binding of its own.
#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <string>

#include "plugin/contract/manifest.h"
#include "plugin/contract/schemas.h"
#include "plugin/load/directory.h"

namespace autoep {
namespace {

c10::Dict<std::string, at::Tensor> LoadShardOp(const std::string& directory, int64_t rank) {
  const Result<std::map<std::string, at::Tensor>> shard = LoadShard(directory, rank);
  TORCH_CHECK(shard.ok(), "autoep: ", shard.status().message());
  c10::Dict<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : *shard) tensors.insert(name, tensor);
  return tensors;
}

std::string ReadManifestOp(const std::string& directory) {
  const Result<contract::Manifest> manifest = OpenDirectory(directory);
  TORCH_CHECK(manifest.ok(), "autoep: ", manifest.status().message());
  return contract::ToJson(*manifest);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(autoep, library) {
  library.def(contract::kLoadShard, &LoadShardOp);
  library.def(contract::kReadManifest, &ReadManifestOp);
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// A converted directory made by hand: `model.block<i>` runs the EP ops on placeholder parameters, shards hold seeded numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "tests/plugin/contract/sample_manifest.h"

namespace autoep {

struct SampleDirectory {
  std::filesystem::path path;
  contract::Manifest manifest;
  std::map<std::string, at::Tensor> experts;  // whole canonical tensors by parameter name

  std::string File(const std::string& name) const { return (path / name).string(); }
  // Writes autoep.json from `manifest` again.
  void WriteManifest() const;
  // What the model computes for x [T, H], ids [T, k], weights [T, k] in the plainest way: every token through its experts.
  at::Tensor Reference(const at::Tensor& x, const at::Tensor& ids, const at::Tensor& weights) const;
};

// forward(x, ids, weights) of the models is the sum of their blocks' outputs. With "per-rank" in `layout` each rank's model
// holds its experts, and there are no shards.
SampleDirectory MakeDirectory(const std::filesystem::path& path, const contract::SampleSizes& sizes = {},
                              const std::string& layout = "shared");

}  // namespace autoep

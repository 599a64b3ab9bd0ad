// SPDX-License-Identifier: Apache-2.0
// Shards against their manifest.
#include "plugin/contract/shard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "plugin/io/sha256.h"
#include "plugin/io/text.h"

namespace autoep::contract {
namespace {

Status Fail(const std::string& path, const std::string& sentence) { return Status(Code::kPlugin, path + ": " + sentence); }

std::string Describe(const SafetensorsSpec& spec) { return fmt::format("{} [{}]", spec.dtype, fmt::join(spec.shape, ", ")); }

// Exactly the tensors that the manifest names.
Status CheckTensors(const std::vector<SafetensorsSpec>& expected, const SafetensorsFile& shard, const std::string& path) {
  for (const SafetensorsSpec& spec : expected) {
    const SafetensorsTensor* found = shard.Find(spec.name);
    if (found == nullptr) return Fail(path, fmt::format("has no tensor '{}', which the manifest names", Printable(spec.name)));
    if (*found == spec) continue;
    return Fail(path,
                fmt::format("tensor '{}' is {}, and the manifest says {}", Printable(spec.name), Describe(*found), Describe(spec)));
  }
  if (shard.tensors().size() == expected.size()) return {};
  const auto known = [&](const SafetensorsTensor& tensor) {
    return std::any_of(expected.begin(), expected.end(), [&](const SafetensorsSpec& spec) { return spec.name == tensor.name; });
  };
  const auto extra = std::find_if_not(shard.tensors().begin(), shard.tensors().end(), known);
  return Fail(path, fmt::format("has a tensor '{}', which the manifest does not name", Printable(extra->name)));
}

}  // namespace

std::vector<SafetensorsSpec> ShardTensors(const Manifest& manifest, int64_t rank) {
  std::vector<SafetensorsSpec> specs;
  for (const ManifestLayer& layer : manifest.layers) {
    for (const ManifestTensor& tensor : layer.tensors) {
      specs.push_back({.name = tensor.param, .dtype = tensor.dtype, .shape = tensor.pieces.at(rank).shape});
    }
  }
  return specs;
}

Status CheckListedFile(const Manifest& manifest, const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  const auto listed =
      std::find_if(manifest.files.begin(), manifest.files.end(), [&](const ManifestFile& file) { return file.file == name; });
  if (listed == manifest.files.end()) return Fail(path, "is not listed in autoep.json: convert the source again");
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) {
    return Fail(path, fmt::format("{}: copy it from where autoep convert wrote the directory, or convert the source again",
                                  error.message()));
  }
  if (std::cmp_equal(bytes, listed->bytes)) return {};
  return Fail(path, fmt::format("has {} bytes, and autoep.json says {}: the copy is incomplete or belongs to another conversion",
                                bytes, listed->bytes));
}

Result<SafetensorsFile> OpenShard(const Manifest& manifest, const std::string& directory, int64_t rank) {
  if (rank < 0 || rank >= manifest.ep_size) {
    return Fail(directory, fmt::format("has shards for ranks 0 to {}, and rank {} was asked for", manifest.ep_size - 1, rank));
  }
  if (manifest.layout != "shared") {
    return Fail(directory, fmt::format("has one complete model a rank and no shards: load {} itself",
                                       PerRankModelName(rank, manifest.ep_size)));
  }
  const std::string name = ShardName(rank, manifest.ep_size);
  AUTOEP_RETURN_IF_ERROR(CheckListedFile(manifest, directory, name));
  Result<SafetensorsFile> shard = SafetensorsFile::Open(directory + "/" + name);
  if (!shard.ok()) return Status(Code::kPlugin, shard.status().message());
  AUTOEP_RETURN_IF_ERROR(CheckTensors(ShardTensors(manifest, rank), *shard, directory + "/" + name));
  return shard;
}

Status CheckShardHashes(const Manifest& manifest, int64_t rank, const SafetensorsFile& shard) {
  const std::string path = shard.file() ? shard.file()->path() : ShardName(rank, manifest.ep_size);
  for (const ManifestLayer& layer : manifest.layers) {
    for (const ManifestTensor& tensor : layer.tensors) {
      const SafetensorsTensor* found = shard.Find(tensor.param);
      if (found == nullptr) return Fail(path, fmt::format("has no tensor '{}'", Printable(tensor.param)));
      if (Sha256Hex({found->data, found->bytes}) == tensor.pieces.at(rank).sha256) continue;
      return Fail(path, fmt::format("tensor '{}' does not have the sha256 that autoep.json gives: the file was changed or damaged",
                                    Printable(tensor.param)));
    }
  }
  return {};
}

}  // namespace autoep::contract

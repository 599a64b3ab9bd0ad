// SPDX-License-Identifier: Apache-2.0
// Reading a converted directory. Every file is mapped; a tensor's bytes are copied once, into torch's own aligned memory.
#include "plugin/load/directory.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "plugin/contract/dtype.h"
#include "plugin/contract/schemas.h"
#include "plugin/contract/shard.h"
#include "plugin/io/json.h"
#include "plugin/io/text.h"
#include "plugin/io/zip_directory.h"

namespace autoep {
namespace {

Status Fail(const std::string& path, const std::string& sentence) { return Status(Code::kPlugin, path + ": " + sentence); }

Status CheckAbi(const contract::Manifest& manifest, const std::string& directory) {
  if (manifest.op_abi == contract::kOpAbi) return {};
  return Fail(directory,
              fmt::format("was written by {} for op ABI {}, and this libautoep has op ABI {}: load it with the libautoep of "
                          "that version, or convert the source again with this one",
                          Printable(manifest.tool), manifest.op_abi, contract::kOpAbi));
}

// A model file and a manifest from two conversions would run, and be wrong.
Status CheckCopy(const contract::Manifest& manifest, const std::string& copy, const std::string& where) {
  AUTOEP_ASSIGN_OR_RETURN(const Json json, ParseJson(copy, where, Code::kPlugin));
  const JsonValue root(json, where, Code::kPlugin);
  AUTOEP_ASSIGN_OR_RETURN(const std::string plan, root.String("plan"));
  AUTOEP_ASSIGN_OR_RETURN(const int64_t abi, root.Int("op_abi", 1, std::numeric_limits<int64_t>::max()));
  if (plan == manifest.plan && abi == manifest.op_abi) return {};
  return Fail(where, "is not the manifest beside it: the directory mixes files of two conversions; copy one of them whole");
}

at::Tensor CopyTensor(const SafetensorsTensor& source) {
  at::Tensor tensor = at::empty(source.shape, contract::FindDtype(source.dtype)->type);
  if (source.bytes > 0) std::memcpy(tensor.mutable_data_ptr(), source.data, source.bytes);
  return tensor;
}

}  // namespace

std::string ModelName(const contract::Manifest& manifest, int64_t rank) {
  return manifest.layout == "shared" ? contract::kModelName : contract::PerRankModelName(rank, manifest.ep_size);
}

Result<contract::Manifest> OpenDirectory(const std::string& directory) {
  AUTOEP_ASSIGN_OR_RETURN(contract::Manifest manifest, contract::ReadManifest(directory));
  AUTOEP_RETURN_IF_ERROR(CheckAbi(manifest, directory));
  return manifest;
}

Status CheckModelFile(const contract::Manifest& manifest, const std::string& directory, int64_t rank) {
  if (rank < 0 || rank >= manifest.ep_size) {
    return Fail(directory, fmt::format("was converted for ranks 0 to {}, and rank {} was asked for", manifest.ep_size - 1, rank));
  }
  const std::string name = ModelName(manifest, rank);
  const std::string path = directory + "/" + name;
  AUTOEP_RETURN_IF_ERROR(contract::CheckListedFile(manifest, directory, name));
  AUTOEP_ASSIGN_OR_RETURN(const ZipDirectory zip, ZipDirectory::Open(path));
  const ZipRecord* record = zip.Find(std::string("extra/") + contract::kManifestName);
  if (record == nullptr) return Fail(path, "carries no manifest: autoep convert did not write it; convert the source again");
  AUTOEP_ASSIGN_OR_RETURN(const std::string copy, zip.Read(*record));
  return CheckCopy(manifest, copy, path + ": " + record->name);
}

Result<std::map<std::string, at::Tensor>> LoadShard(const contract::Manifest& manifest, const std::string& directory, int64_t rank,
                                                    bool verify_hashes) {
  AUTOEP_RETURN_IF_ERROR(CheckModelFile(manifest, directory, rank));
  std::map<std::string, at::Tensor> tensors;
  if (manifest.layout != "shared") return tensors;
  AUTOEP_ASSIGN_OR_RETURN(const SafetensorsFile shard, contract::OpenShard(manifest, directory, rank));
  if (verify_hashes) AUTOEP_RETURN_IF_ERROR(contract::CheckShardHashes(manifest, rank, shard));
  try {
    for (const SafetensorsTensor& tensor : shard.tensors()) {
      tensors.emplace(tensor.name, CopyTensor(tensor));
      shard.file()->Forget(tensor.data - shard.file()->data(), tensor.bytes);
    }
  } catch (const c10::Error& error) {
    return Fail(shard.file()->path(), error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Fail(shard.file()->path(), error.what());
  }
  return tensors;
}

Result<std::map<std::string, at::Tensor>> LoadShard(const std::string& directory, int64_t rank) {
  AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, OpenDirectory(directory));
  return LoadShard(manifest, directory, rank);
}

}  // namespace autoep

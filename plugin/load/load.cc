// SPDX-License-Identifier: Apache-2.0
// Load: which rank this process is, the model, its shard, its group.
#include "plugin/load/load.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/csrc/jit/serialization/import.h>

#include <exception>

#include "plugin/comm/resolve.h"
#include "plugin/contract/manifest.h"
#include "plugin/load/attach.h"
#include "plugin/load/directory.h"

namespace autoep {
namespace {

// The rank in the group where that is known, and it must be the rank asked for: another's experts would run and be wrong.
Result<int64_t> ChooseRank(const contract::Manifest& manifest, const std::string& directory, const LoadOptions& options) {
  if (manifest.ep_size == 1) return options.rank.value_or(0);
  const auto communicator = comm::ResolveCommunicator(options.group, manifest.ep_size);
  if (communicator.ok()) {
    const int64_t rank = (*communicator)->rank();
    if (options.rank.value_or(rank) == rank) return rank;
    return Status(Code::kPlugin,
                  fmt::format("{}: rank {} was asked for, and this process is rank {} of the group: leave the rank out", directory,
                              *options.rank, rank));
  }
  if (options.rank) return *options.rank;
  return communicator.status().At(directory);
}

Result<torch::jit::Module> LoadModel(const std::string& path, at::Device device) {
  try {
    return torch::jit::load(path, device);
  } catch (const c10::Error& error) {
    return Status(Code::kInput, fmt::format("{}: LibTorch cannot load it: {}", path, error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return Status(Code::kInput, fmt::format("{}: LibTorch cannot load it: {}", path, error.what()));
  }
}

// What LibTorch throws here concerns the device: memory, or a device that is not there.
Status Fill(torch::jit::Module& model, const contract::Manifest& manifest, const std::map<std::string, at::Tensor>& shard,
            const LoadOptions& options) {
  try {
    if (!shard.empty()) AUTOEP_RETURN_IF_ERROR(AttachShard(model, manifest, shard, options.device));
    AUTOEP_RETURN_IF_ERROR(SetGroup(model, manifest, options.group));
    if (options.trainable) MakeTrainable(model);
    return {};
  } catch (const c10::Error& error) {
    return Status(Code::kPlugin,
                  fmt::format("the experts cannot be put on {}: {}", options.device.str(), error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return Status(Code::kPlugin, fmt::format("the experts cannot be put on {}: {}", options.device.str(), error.what()));
  }
}

}  // namespace

Result<torch::jit::Module> TryLoad(const std::string& directory, const LoadOptions& options) {
  AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, OpenDirectory(directory));
  AUTOEP_ASSIGN_OR_RETURN(const int64_t rank, ChooseRank(manifest, directory, options));
  AUTOEP_ASSIGN_OR_RETURN(const auto shard, LoadShard(manifest, directory, rank, options.verify_hashes));
  AUTOEP_ASSIGN_OR_RETURN(torch::jit::Module model, LoadModel(directory + "/" + ModelName(manifest, rank), options.device));
  AUTOEP_RETURN_IF_ERROR(Fill(model, manifest, shard, options).At(directory));
  return model;
}

torch::jit::Module Load(const std::string& directory, const LoadOptions& options) {
  Result<torch::jit::Module> model = TryLoad(directory, options);
  TORCH_CHECK(model.ok(), "autoep: ", model.status().message());
  return std::move(model).value();
}

}  // namespace autoep

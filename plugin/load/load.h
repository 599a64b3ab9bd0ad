// SPDX-License-Identifier: Apache-2.0
// Loading a converted directory from C++: the rewritten model with one rank's experts in place, ready to run or train. Link
// libautoep.so; the Python package does the same through the ops load_shard and read_manifest.
#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <optional>
#include <string>

#include "plugin/contract/export.h"
#include "plugin/io/status.h"

namespace autoep {

struct LoadOptions {
  // Name of the EP process group: one registered with c10d (comm/gloo.h makes one), or "" for the default group. Its size is
  // the model's EP size; a larger world registers one group for each block of consecutive ranks and passes the block's. An EP
  // size of 1 needs none. Every EP block of the model is set to this name, and finds the group when it runs.
  std::string group;
  // This process's rank in the EP group, which is also the shard's number. Unset: the rank in `group`, which must exist now.
  std::optional<int64_t> rank;
  at::Device device = at::kCPU;
  // Every floating-point parameter requires a gradient. Else they do as they did in the source; a trace has none that does.
  bool trainable = false;
  // Compare the sha256 of this rank's expert tensors with the manifest's; reads the shard twice.
  bool verify_hashes = false;
};

// Loads `directory`. Throws c10::Error with one sentence, as torch::jit::load does, and never another exception.
AUTOEP_API torch::jit::Module Load(const std::string& directory, const LoadOptions& options = {});

// The same without exceptions. kPlugin: shard, group, manifest or ABI; kInput: a file that cannot be read.
AUTOEP_API Result<torch::jit::Module> TryLoad(const std::string& directory, const LoadOptions& options = {});

}  // namespace autoep

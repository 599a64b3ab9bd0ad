// SPDX-License-Identifier: Apache-2.0
// MoeModel: a TorchScript archive opened without reading its tensors.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "passes/model/archive.h"
#include "plugin/io/files.h"
#include "plugin/io/status.h"

namespace autoep {

struct MoeModel {
  std::shared_ptr<Archive> archive;   // keeps the mapping that the tensors' storages point into
  torch::jit::Module module;          // eval or train as saved; all tensors map the archive read-only: never write to them
  std::vector<at::IValue> constants;  // the archive's constants table: entry n is CONSTANTS.c<n> in its code
};

// Opens a checked archive. Tensors are storages over the mapping; a tensor that reaches beyond its storage is refused.
// Where objects are built by code (`__setstate__`, custom classes), which may write to them, the tensors are copies, and
// every record's CRC was checked. Of an inlined model, submodules have no methods (uncalled.h). Fails with kInput.
Result<MoeModel> OpenModel(const std::string& path);
Result<MoeModel> OpenModel(std::shared_ptr<Archive> archive);

// Serialises `module` with root name "archive", so that the bytes do not depend on any file name. Tensors stream from where
// they lie. `extra_files` become records "extra/<name>". Fails as the sink does, or with kBug.
Status WriteModel(const torch::jit::Module& module, const std::map<std::string, std::string>& extra_files, const ByteSink& sink);

}  // namespace autoep

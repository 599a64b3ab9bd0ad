// SPDX-License-Identifier: Apache-2.0
// The options of convert and passes that choose, limit and record passes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "passes/pipeline.h"
#include "plugin/io/status.h"

namespace autoep {

class PassOptions {
 public:
  void Declare(CLI::App& app);

  // Checks names and numbers (kUsage).
  Result<PipelineOptions> Resolve() const;
  // Makes the folder for dumps, where one is asked for and missing (kOutput). Call it when all else has been checked.
  Status MakeDumpFolder() const;

 private:
  std::vector<std::string> disabled_;
  std::string limit_;
  std::string dump_ir_;
};

}  // namespace autoep

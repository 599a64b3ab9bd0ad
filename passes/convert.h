// SPDX-License-Identifier: Apache-2.0
// Convert: from an opened model and what was detected in it to the files of a converted directory.
#pragma once

#include <cstdint>
#include <string>

#include "passes/detect/moe_layer.h"
#include "passes/model/moe_model.h"
#include "passes/pipeline.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/output.h"
#include "plugin/io/status.h"

namespace autoep {

struct ConvertOptions {
  int64_t ep_size = 1;
  std::string layout = "shared";  // or "per-rank"
  std::string tool;               // for the manifest: "autoep 0.1.0"
  bool strip_debug = false;       // drop the source author's file names and lines
  PipelineOptions pipeline;
};

struct Converted {
  contract::Manifest manifest;
  PipelineReport passes;
};

// Plans, rewrites `model` in place, and writes every file of the directory into `output`, autoep.json last; publishes
// nothing. Afterwards model.module is the module of model.pt (of the last rank in layout "per-rank"): good for counting, not
// for running. Fails as BuildPlan and RunPipeline do, with kInput for damaged tensor records, and as `output` does.
Result<Converted> Convert(MoeModel& model, const Detection& detection, const ConvertOptions& options, StagedDirectory& output);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The skeleton, source.pt-skeleton: what is left of the source archive without the tensors that the converted directory holds
// elsewhere. With the shards and model.pt it makes up the source again.
//
// Format: a zip as LibTorch writes it, root "archive". It holds, byte for byte and under their names, the source's records
// (code, pickles, debug records, extra files) except tensor records whose every byte lies in expert tensors, and tensor records
// whose storage model.pt carries. The record "autoep/records.json" lists all records of the source in file order:
//   {"serialization_id": TEXT,
//    "records": [{"name", "bytes", "crc32", "deflated", "in": "skeleton" | "model" | "experts" | "nowhere"}, ...]}
// The source's ".data/serialization_id" stands in that list only: LibTorch's writer makes its own. Debug records that were to
// be stripped are "nowhere".
#pragma once

#include <torch/csrc/jit/api/module.h>

#include "passes/model/archive.h"
#include "passes/repack/plan.h"
#include "plugin/io/files.h"
#include "plugin/io/status.h"

namespace autoep {

// `rewritten` is the module of model.pt; its replicated tensors still lie in the source's mapping. Checks the CRC of each
// record it copies (kInput); fails as the sink does.
Status WriteSkeleton(Archive& source, const Plan& plan, const torch::jit::Module& rewritten, bool strip_debug,
                     const ByteSink& sink);

}  // namespace autoep

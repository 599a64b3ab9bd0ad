// SPDX-License-Identifier: Apache-2.0
// convert's before/after table and its JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/contract/manifest.h"
#include "plugin/io/json.h"
#include "tools/console.h"
#include "tools/model_summary.h"

namespace autoep {

struct BeforeAfter {
  ModelSummary before;
  ModelSummary after;        // of one rank's model file
  int64_t source_bytes = 0;  // the file
  int64_t expert_bytes = 0;  // of all experts
  contract::Manifest manifest;
  std::vector<std::string> limits;  // of the whole model

  // What a rank holds besides its experts.
  int64_t ReplicatedBytes() const;
  int64_t RankBytes(int64_t rank) const;
};

std::string BeforeAfterTable(const BeforeAfter& report, const Console& console);
Json BeforeAfterJson(const BeforeAfter& report);

// "2 layers, 16 experts -> 2 ranks, 288.0 KiB of experts a rank": the last line after "autoep: OK convert ".
std::string ConvertedSentence(const contract::Manifest& manifest);

}  // namespace autoep

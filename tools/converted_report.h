// SPDX-License-Identifier: Apache-2.0
// What inspect says of a converted directory or a rewritten model.
#pragma once

#include <string>

#include "plugin/contract/manifest.h"
#include "plugin/io/json.h"
#include "tools/console.h"
#include "tools/model_summary.h"

namespace autoep {

// One row a layer of the manifest: sizes, experts a rank, bytes a rank, and the EP ops of its block.
std::string ConvertedTable(const contract::Manifest& manifest, const ModelSummary& summary, const Console& console);
Json ConvertedJson(const contract::Manifest& manifest, const ModelSummary& summary);

// "dispatch, experts, combine", with a count where an op occurs more than once.
std::string OpsText(const OpCounts& ops);

// Expert bytes of one rank over all layers; 0 for a rank without pieces.
int64_t RankExpertBytes(const contract::Manifest& manifest, int64_t rank);
// Expert bytes of all ranks.
int64_t TotalExpertBytes(const contract::Manifest& manifest);

}  // namespace autoep

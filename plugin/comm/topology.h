// SPDX-License-Identifier: Apache-2.0
// Which ranks of the world form the expert-parallel (EP) and the expert-data-parallel (EDP) groups. Pure arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "plugin/contract/export.h"
#include "plugin/io/status.h"

namespace autoep::comm {

struct Topology {
  int64_t world_size = 1;
  int64_t ep_size = 1;

  int64_t EpGroupCount() const { return world_size / ep_size; }
  // The EP group of a rank of the world, and its rank therein: its shard.
  int64_t EpGroupOf(int64_t rank) const { return rank / ep_size; }
  int64_t EpRankOf(int64_t rank) const { return rank % ep_size; }

  // Consecutive blocks: {0..N-1}, {N..2N-1}, ... Together they hold every expert once per group.
  AUTOEP_API std::vector<std::vector<int64_t>> EpGroups() const;
  // Strides of N: {i, i+N, i+2N, ...}. Their ranks hold the same experts.
  AUTOEP_API std::vector<std::vector<int64_t>> EdpGroups() const;
};

// kPlugin unless both sizes are positive and the EP size divides the world; the sentence names the EP sizes that work.
AUTOEP_API Result<Topology> MakeTopology(int64_t world_size, int64_t ep_size);

}  // namespace autoep::comm

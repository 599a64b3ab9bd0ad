// SPDX-License-Identifier: Apache-2.0
// EP blocks and EDP strides.
#include "plugin/comm/topology.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "plugin/contract/placement.h"

namespace autoep::comm {

std::vector<std::vector<int64_t>> Topology::EpGroups() const {
  std::vector<std::vector<int64_t>> groups(EpGroupCount());
  for (int64_t rank = 0; rank < world_size; ++rank) groups[EpGroupOf(rank)].push_back(rank);
  return groups;
}

std::vector<std::vector<int64_t>> Topology::EdpGroups() const {
  std::vector<std::vector<int64_t>> groups(ep_size);
  for (int64_t rank = 0; rank < world_size; ++rank) groups[EpRankOf(rank)].push_back(rank);
  return groups;
}

Result<Topology> MakeTopology(int64_t world_size, int64_t ep_size) {
  if (world_size < 1) return Status(Code::kPlugin, fmt::format("a world of {} ranks: at least 1 is needed", world_size));
  if (ep_size < 1 || world_size % ep_size != 0) {
    return Status(Code::kPlugin, fmt::format("a world of {} ranks cannot be split into EP groups of {}: EP sizes that work: {}",
                                             world_size, ep_size, fmt::join(contract::PossibleEpSizes(world_size), ", ")));
  }
  return Topology{world_size, ep_size};
}

}  // namespace autoep::comm

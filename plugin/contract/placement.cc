// SPDX-License-Identifier: Apache-2.0
// Linear placement, and the check that every placement passes.
#include "plugin/contract/placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace autoep::contract {

std::vector<int64_t> Placement::ExpertsOf(int64_t rank) const {
  std::vector<int64_t> held;
  for (int64_t expert = 0; expert < static_cast<int64_t>(experts.size()); ++expert) {
    if (experts[expert].rank == rank) held.push_back(expert);
  }
  std::sort(held.begin(), held.end(), [&](int64_t a, int64_t b) { return experts[a].slot < experts[b].slot; });
  return held;
}

std::vector<int64_t> PossibleEpSizes(int64_t num_experts) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= num_experts; ++size) {
    if (num_experts % size == 0) sizes.push_back(size);
  }
  return sizes;
}

Result<Placement> LinearPlacement(int64_t num_experts, int64_t ep_size) {
  if (num_experts < 1) return Status(Code::kPlan, fmt::format("a layer has {} experts; at least 1 is needed", num_experts));
  if (ep_size < 1 || num_experts % ep_size != 0) {
    return Status(Code::kPlan,
                  fmt::format("{} experts cannot be placed on {} ranks: every rank must hold the same number; sizes that work: {}",
                              num_experts, ep_size, fmt::join(PossibleEpSizes(num_experts), ", ")));
  }
  Placement placement{.ep_size = ep_size, .experts = {}};
  const int64_t slots = num_experts / ep_size;
  for (int64_t expert = 0; expert < num_experts; ++expert) placement.experts.push_back({expert / slots, expert % slots});
  return placement;
}

Status CheckPlacement(const Placement& placement) {
  const auto num_experts = static_cast<int64_t>(placement.experts.size());
  if (placement.ep_size < 1 || num_experts < 1 || num_experts % placement.ep_size != 0) {
    return Status(Code::kPlan, fmt::format("a placement of {} experts on {} ranks: every rank must hold the same number of experts",
                                           num_experts, placement.ep_size));
  }
  const int64_t slots = num_experts / placement.ep_size;
  std::vector<int64_t> holder(num_experts, -1);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const auto [rank, slot] = placement.experts[expert];
    if (rank < 0 || rank >= placement.ep_size || slot < 0 || slot >= slots) {
      return Status(Code::kPlan, fmt::format("expert {} is placed on rank {}, slot {}, and there are {} ranks of {} slots", expert,
                                             rank, slot, placement.ep_size, slots));
    }
    int64_t& held = holder[rank * slots + slot];
    if (held >= 0)
      return Status(Code::kPlan, fmt::format("experts {} and {} are both placed on rank {}, slot {}", held, expert, rank, slot));
    held = expert;
  }
  return {};
}

}  // namespace autoep::contract

// SPDX-License-Identifier: Apache-2.0
// Placement: which rank holds which expert, and in which slot. Pure arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/io/status.h"

namespace autoep::contract {

struct ExpertSlot {
  int64_t rank;
  int64_t slot;
  bool operator==(const ExpertSlot&) const = default;
};

struct Placement {
  int64_t ep_size = 1;
  std::vector<ExpertSlot> experts;  // indexed by expert

  // Experts of `rank` in slot order.
  std::vector<int64_t> ExpertsOf(int64_t rank) const;
  bool operator==(const Placement&) const = default;
};

// Rank r holds experts [r*E/N, (r+1)*E/N). Fails (kPlan) unless 1 <= N <= E and N divides E, naming the sizes that work.
Result<Placement> LinearPlacement(int64_t num_experts, int64_t ep_size);

// The sizes from 1 to num_experts that divide num_experts, ascending.
std::vector<int64_t> PossibleEpSizes(int64_t num_experts);

// Every slot of every rank used exactly once, all ranks with the same number of slots.
Status CheckPlacement(const Placement& placement);

}  // namespace autoep::contract

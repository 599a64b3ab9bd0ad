// SPDX-License-Identifier: Apache-2.0
// GPU memory that every rank of a group can read and write, in torch's symmetric memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/symm_mem/SymmetricMemory.hpp>
#include <vector>

namespace autoep::comm {

// What every rank says, by rank, over the group itself. Collective. Throws where a rank does not come within the group's timeout.
std::vector<int64_t> AllSay(c10d::ProcessGroup& group, const at::Device& device, int64_t word);
bool AllSayTrue(c10d::ProcessGroup& group, const at::Device& device, bool word);

struct SharedMemory {
  at::Tensor own;                                                         // [bytes] uint8
  c10::intrusive_ptr<c10d::symmetric_memory::SymmetricMemory> all_ranks;  // each one's

  char* Of(int64_t rank) const { return static_cast<char*>(all_ranks->get_buffer_ptrs()[rank]); }
};

// Zeros, so many bytes on each rank; or nothing on every rank, with a warning, where one of them failed. Collective.
std::optional<SharedMemory> MakeSharedMemory(c10d::ProcessGroup& group, const at::Device& device, int64_t bytes);

}  // namespace autoep::comm

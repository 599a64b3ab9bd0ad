// SPDX-License-Identifier: Apache-2.0
// Ranks whose GPUs reach each other's memory meet: each tells each other rank some words, and waits until it was told. Or one gives
// others notice, and goes on. Raw device pointers and a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace autoep::comm::cuda {

inline constexpr int64_t kMostWords = 1024;  // told to one rank
inline constexpr int64_t kFlagWords = 16;    // a flag's cache line
inline constexpr int64_t kMostRanks = 64;
inline constexpr int64_t kMostNumbers = 4;

// What each rank's memory holds, all zero in the beginning: a flag of each rank, which says to what meeting it has come, another
// for its last notice, and what it told, for meetings of even and of odd numbers.
inline constexpr int64_t kMeetingWords = kMostRanks * (2 * kFlagWords + 2 * kMostWords);

struct Meeting {
  int64_t* const* memory;  // device memory, a pointer a rank
  int64_t rank, ranks;
  int64_t number;   // 1, 2, ..., the same on every rank
  int64_t wait_ns;  // for a rank at most
};

// What each rank is told, in this order; may be nothing.
struct Words {
  const int64_t* each;  // [ranks, num_each]
  const int64_t* all;   // [num_all]
  int64_t num_each, num_all;
  int64_t numbers[kMostNumbers];
  int64_t num_numbers;

  int64_t Count() const { return num_each + num_all + num_numbers; }
};

// heard [ranks, told.Count()]. What is heard of a rank that does not come is `absent`; without words, the kernel ends the program's
// use of the device (__trap), for what follows would read rows that are not there.
void Meet(const Meeting& meeting, const Words& told, int64_t* heard, int64_t absent, cudaStream_t stream);

struct Notice {
  int64_t* const* memory;  // as above
  int64_t rank, ranks;
  uint64_t others;  // a bit for each rank that is given notice, or that gives it
  int64_t number;   // above that of any notice that the same rank gave the same other one before
  int64_t wait_ns;  // for a rank at most
};

// What the stream wrote before is there for those who await the notice.
void Give(const Notice& notice, cudaStream_t stream);
// A rank that gives none ends the program's use of the device, as above.
void Await(const Notice& notice, cudaStream_t stream);

}  // namespace autoep::comm::cuda

// SPDX-License-Identifier: Apache-2.0
// A meeting is a block a rank: writes into that rank's memory, raises the flag there, and waits for the flag here. A notice is a
// thread a rank.
#include <cstdio>

#include "plugin/comm/meet_cuda.h"

namespace autoep::comm::cuda {
namespace {

__device__ int64_t* FlagOf(int64_t* memory, int64_t rank) { return memory + rank * kFlagWords; }

__device__ int64_t* NoticeOf(int64_t* memory, int64_t rank) { return FlagOf(memory, kMostRanks + rank); }

__device__ int64_t* WordsOf(int64_t* memory, int64_t rank, int64_t number) {
  return FlagOf(memory, 2 * kMostRanks) + ((number % 2) * kMostRanks + rank) * kMostWords;
}

__device__ void Raise(int64_t* flag, int64_t number) {
  asm volatile("st.release.sys.global.s64 [%0], %1;" ::"l"(flag), "l"(number) : "memory");
}

__device__ int64_t Read(const int64_t* flag) {
  int64_t number;
  asm volatile("ld.acquire.sys.global.s64 %0, [%1];" : "=l"(number) : "l"(flag) : "memory");
  return number;
}

__device__ int64_t Now() {
  int64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ bool Reaches(const int64_t* flag, int64_t number, int64_t wait_ns) {
  const int64_t begin = Now();
  while (Read(flag) < number) {
    if (Now() - begin > wait_ns) return false;
  }
  return true;
}

__device__ int64_t WordOf(const Words& told, int64_t other, int64_t i) {
  if (i < told.num_each) return told.each[other * told.num_each + i];
  i -= told.num_each;
  return i < told.num_all ? told.all[i] : told.numbers[i - told.num_all];
}

__device__ void Stop(int64_t rank, int64_t other, int64_t wait_ns) {
  printf("autoep: rank %lld of the group waited %lld s for rank %lld: it is gone, or is not in this call\n", (long long)rank,
         (long long)(wait_ns / 1000000000), (long long)other);
  __trap();
}

// Another rank is at most one meeting ahead, so that what it tells then lies beside what is still read here.
__global__ void MeetKernel(Meeting meeting, Words told, int64_t words, int64_t* heard, int64_t absent) {
  const int64_t other = blockIdx.x;
  int64_t* theirs = meeting.memory[other];
  int64_t* mine = meeting.memory[meeting.rank];
  int64_t* there = WordsOf(theirs, meeting.rank, meeting.number);
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) there[i] = WordOf(told, other, i);
  __threadfence_system();
  __syncthreads();
  __shared__ bool came;
  if (threadIdx.x == 0) {
    Raise(FlagOf(theirs, meeting.rank), meeting.number);
    came = Reaches(FlagOf(mine, other), meeting.number, meeting.wait_ns);
    if (!came && words == 0) Stop(meeting.rank, other, meeting.wait_ns);
  }
  __syncthreads();
  const volatile int64_t* here = WordsOf(mine, other, meeting.number);
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) heard[other * words + i] = came ? here[i] : absent;
}

__global__ void GiveKernel(Notice notice) {
  if ((notice.others >> threadIdx.x & 1) == 0) return;
  __threadfence_system();
  Raise(NoticeOf(notice.memory[threadIdx.x], notice.rank), notice.number);
}

// It waits beside kernels that compute, and leaves them nearly all of its multiprocessor's registers.
__global__ void AwaitKernel(Notice notice) {
  if ((notice.others >> threadIdx.x & 1) == 0) return;
  const int64_t* flag = NoticeOf(notice.memory[notice.rank], threadIdx.x);
  if (!Reaches(flag, notice.number, notice.wait_ns)) Stop(notice.rank, threadIdx.x, notice.wait_ns);
}

}  // namespace

void Meet(const Meeting& meeting, const Words& told, int64_t* heard, int64_t absent, cudaStream_t stream) {
  const int64_t words = told.Count();
  const unsigned threads = words > 0 ? 128 : 32;
  MeetKernel<<<static_cast<unsigned>(meeting.ranks), threads, 0, stream>>>(meeting, told, words, heard, absent);
}

void Give(const Notice& notice, cudaStream_t stream) {
  GiveKernel<<<1, static_cast<unsigned>(notice.ranks), 0, stream>>>(notice);
}

void Await(const Notice& notice, cudaStream_t stream) {
  AwaitKernel<<<1, static_cast<unsigned>(notice.ranks), 0, stream>>>(notice);
}

}  // namespace autoep::comm::cuda

// SPDX-License-Identifier: Apache-2.0
// Hopper's own instructions (PTX ISA 8.0, sm_90a): barriers in shared memory, the tensor copy engine, stmatrix.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "plugin/ops/cluster.cuh"

namespace autoep::ops::cuda::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Orders writes to shared memory that this thread knows of, not the copy engine's, before its reads by wgmma.
__device__ __forceinline__ void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes) : "memory");
}

#define AUTOEP_WAIT(ORDER)                                                       \
  asm volatile(                                                                  \
      "{\n"                                                                      \
      ".reg .pred done;\n"                                                       \
      "again:\n"                                                                 \
      "mbarrier.try_wait.parity" ORDER ".shared::cta.b64 done, [%0], %1;\n"      \
      "@done bra over;\n"                                                        \
      "bra again;\n"                                                             \
      "over:\n"                                                                  \
      "}\n" ::"r"(SharedAddress(barrier)),                                       \
      "r"(parity)                                                                \
      : "memory")

__device__ __forceinline__ void Wait(uint64_t* barrier, uint32_t parity) {
  AUTOEP_WAIT("");
}

// Whether Wait would return at once.
__device__ __forceinline__ bool Passed(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\nmbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}\n"
      : "=r"(done)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

// To the same place of each block of the cluster whose bit is set in `blocks`, and its barrier.
__device__ __forceinline__ void Copy2(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], "
      "%5;" ::"r"(SharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

__device__ __forceinline__ void Copy2(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   SharedAddress(to)),
               "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void ArriveAtPeer(const uint64_t* barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(PeerAddress(barrier, rank)) : "memory");
}

// After StoreAtPeer: who waits with WaitForPeer sees what was stored. It costs a fence.
__device__ __forceinline__ void TellPeer(const uint64_t* barrier, int rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(PeerAddress(barrier, rank)) : "memory");
}

__device__ __forceinline__ void StoreAtPeer(const void* pointer, int rank, int4 values) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(PeerAddress(pointer, rank)), "r"(values.x), "r"(values.y),
               "r"(values.z), "r"(values.w)
               : "memory");
}

// For TellPeer.
__device__ __forceinline__ void WaitForPeer(uint64_t* barrier, uint32_t parity) {
  AUTOEP_WAIT(".acquire.cluster");
}

#undef AUTOEP_WAIT

__device__ __forceinline__ void Copy3(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   SharedAddress(to)),
               "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
}

__device__ __forceinline__ void Copy4(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
          SharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

__device__ __forceinline__ void Copy4(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z, int w,
                                      uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5, %6}], "
      "[%2], %7;" ::"r"(SharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w), "h"(blocks)
      : "memory");
}

__device__ __forceinline__ void Copy5(void* to, const CUtensorMap* map, uint64_t* barrier, int a, int b, int c, int d, int e) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(
          SharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(SharedAddress(barrier)), "r"(a), "r"(b), "r"(c), "r"(d), "r"(e)
      : "memory");
}

// 16 bytes, past the L1 cache. `bytes` 0 writes zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Arrives once this thread's earlier CopyAsync16 have landed.
__device__ __forceinline__ void ArriveAfterCopies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Stores four 8x8 tiles of 16-bit values transposed: lanes 8i to 8i + 7 give the addresses of the i-th one's rows.
__device__ __forceinline__ void StoreTransposed(uint32_t row, uint32_t first, uint32_t second, uint32_t third, uint32_t fourth) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(first), "r"(second),
               "r"(third), "r"(fourth)
               : "memory");
}

// From shared memory, by the copy engine. A thread's stores up to EndStores are a group.
__device__ __forceinline__ void Store4(const void* from, const CUtensorMap* map, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
                   reinterpret_cast<uint64_t>(map)),
               "r"(SharedAddress(from)), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
__device__ __forceinline__ void EndStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until they have read shared memory.
__device__ __forceinline__ void WaitForStoresReading() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Until they are done.
__device__ __forceinline__ void WaitForStores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace autoep::ops::cuda::hopper

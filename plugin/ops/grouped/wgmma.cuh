// SPDX-License-Identifier: Apache-2.0
// wgmma: a warpgroup multiplies 64 x 16 by 16 x N, both operands in shared memory in the 128-byte swizzle. An operand is K-major,
// or lies across: a row of it is one value of K.
//
// Accumulators (PTX ISA, wgmma register fragments): d[4j + 2h + i] of lane l in warp w is row 16w + l/4 + 8h, column
// 8j + 2(l%4) + i.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "plugin/ops/grouped/hopper.cuh"

namespace autoep::ops::cuda::hopper {

// A tile of rows of 128 bytes at a 1024-byte boundary: groups of 8 rows follow each other. Where a row is 64 values of K, 16 of
// them further on is +2; where it is one value of K for 64 of the operand's rows (across), +128, and the next 64 of the operand's
// rows follow after kChunkBytes.
template <int kChunkBytes = 16>
__device__ __forceinline__ uint64_t Descriptor(const void* tile) {
  constexpr uint64_t kSwizzle128 = 1ULL << 62;
  constexpr uint64_t kGroupStride = (1024ULL >> 4) << 32;
  constexpr uint64_t kChunkStride = (static_cast<uint64_t>(kChunkBytes) >> 4) << 16;
  return kSwizzle128 | kGroupStride | kChunkStride | ((SharedAddress(tile) & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void FenceWgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void CommitWgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void WaitWgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

inline constexpr int kMostSums = 128;  // of a thread: 64 x 256 of a warpgroup

// d = a x b^T, plus d where `add`. d's first N / 2 values.
template <typename T, int N, bool kAAcross, bool kBAcross>
struct Wgmma;

#define AUTOEP_R2(t) "%" t "0, %" t "1"
#define AUTOEP_R4(t) AUTOEP_R2(t) ", %" t "2, %" t "3"
#define AUTOEP_R6(t) AUTOEP_R4(t) ", %" t "4, %" t "5"
#define AUTOEP_R8(t) AUTOEP_R6(t) ", %" t "6, %" t "7"
#define AUTOEP_R10(t) AUTOEP_R8(t) ", %" t "8, %" t "9"
#define AUTOEP_R40 AUTOEP_R10("") ", " AUTOEP_R10("1") ", " AUTOEP_R10("2") ", " AUTOEP_R10("3")
#define AUTOEP_R80 AUTOEP_R40 ", " AUTOEP_R10("4") ", " AUTOEP_R10("5") ", " AUTOEP_R10("6") ", " AUTOEP_R10("7")
#define AUTOEP_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AUTOEP_F8(i) AUTOEP_F4(i), AUTOEP_F4(i + 4)
#define AUTOEP_F16(i) AUTOEP_F8(i), AUTOEP_F8(i + 8)
#define AUTOEP_F32(i) AUTOEP_F16(i), AUTOEP_F16(i + 16)
#define AUTOEP_F64(i) AUTOEP_F32(i), AUTOEP_F32(i + 32)

#define AUTOEP_WGMMA(T, TYPE, N, A_ACROSS, B_ACROSS, REGISTERS, A, B, ADD, SUMS)                                             \
  template <>                                                                                                                \
  struct Wgmma<T, N, A_ACROSS, B_ACROSS> {                                                                                   \
    static __device__ __forceinline__ void Run(float* d, uint64_t a, uint64_t b, int add) {                                  \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" ADD ", 0;\n"                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, %" A ", %" B           \
                   ", add, 1, 1, " #A_ACROSS ", " #B_ACROSS ";\n}\n"                                                         \
                   : SUMS                                                                                                    \
                   : "l"(a), "l"(b), "r"(add));                                                                              \
    }                                                                                                                        \
  };

#define AUTOEP_S8 AUTOEP_F4(0)
#define AUTOEP_S16 AUTOEP_F8(0)
#define AUTOEP_S32 AUTOEP_F16(0)
#define AUTOEP_S48 AUTOEP_F16(0), AUTOEP_F8(16)
#define AUTOEP_S64 AUTOEP_F32(0)
#define AUTOEP_S80 AUTOEP_F32(0), AUTOEP_F8(32)
#define AUTOEP_S96 AUTOEP_F32(0), AUTOEP_F16(32)
#define AUTOEP_S112 AUTOEP_F32(0), AUTOEP_F16(32), AUTOEP_F8(48)
#define AUTOEP_S128 AUTOEP_F64(0)
#define AUTOEP_S144 AUTOEP_F64(0), AUTOEP_F8(64)
#define AUTOEP_S160 AUTOEP_F64(0), AUTOEP_F16(64)
#define AUTOEP_S176 AUTOEP_F64(0), AUTOEP_F16(64), AUTOEP_F8(80)
#define AUTOEP_S192 AUTOEP_F64(0), AUTOEP_F32(64)
#define AUTOEP_S208 AUTOEP_F64(0), AUTOEP_F32(64), AUTOEP_F8(96)
#define AUTOEP_S224 AUTOEP_F64(0), AUTOEP_F32(64), AUTOEP_F16(96)
#define AUTOEP_S240 AUTOEP_F64(0), AUTOEP_F32(64), AUTOEP_F16(96), AUTOEP_F8(112)
#define AUTOEP_S256 AUTOEP_F64(0), AUTOEP_F64(64)

#define AUTOEP_WGMMAS(T, TYPE, A_ACROSS, B_ACROSS)                                                                                                                                                    \
  AUTOEP_WGMMA(T, TYPE, 8, A_ACROSS, B_ACROSS, AUTOEP_R4(""), "4", "5", "6", AUTOEP_S8)                                                                                                                    \
  AUTOEP_WGMMA(T, TYPE, 16, A_ACROSS, B_ACROSS, AUTOEP_R8(""), "8", "9", "10", AUTOEP_S16)                                                                                                                 \
  AUTOEP_WGMMA(T, TYPE, 32, A_ACROSS, B_ACROSS, AUTOEP_R10("") ", " AUTOEP_R6("1"), "16", "17", "18", AUTOEP_S32)                                                                                          \
  AUTOEP_WGMMA(T, TYPE, 48, A_ACROSS, B_ACROSS, AUTOEP_R10("") ", " AUTOEP_R10("1") ", " AUTOEP_R4("2"), "24", "25", "26", AUTOEP_S48)                                                                     \
  AUTOEP_WGMMA(T, TYPE, 64, A_ACROSS, B_ACROSS, AUTOEP_R10("") ", " AUTOEP_R10("1") ", " AUTOEP_R10("2") ", " AUTOEP_R2("3"), "32", "33", "34", AUTOEP_S64)                                                \
  AUTOEP_WGMMA(T, TYPE, 80, A_ACROSS, B_ACROSS, AUTOEP_R40, "40", "41", "42", AUTOEP_S80)                                                                                                                  \
  AUTOEP_WGMMA(T, TYPE, 96, A_ACROSS, B_ACROSS, AUTOEP_R40 ", " AUTOEP_R8("4"), "48", "49", "50", AUTOEP_S96)                                                                                              \
  AUTOEP_WGMMA(T, TYPE, 112, A_ACROSS, B_ACROSS, AUTOEP_R40 ", " AUTOEP_R10("4") ", " AUTOEP_R6("5"), "56", "57", "58", AUTOEP_S112)                                                                       \
  AUTOEP_WGMMA(T, TYPE, 128, A_ACROSS, B_ACROSS, AUTOEP_R40 ", " AUTOEP_R10("4") ", " AUTOEP_R10("5") ", " AUTOEP_R4("6"), "64", "65", "66", AUTOEP_S128)                                                  \
  AUTOEP_WGMMA(T, TYPE, 144, A_ACROSS, B_ACROSS, AUTOEP_R40 ", " AUTOEP_R10("4") ", " AUTOEP_R10("5") ", " AUTOEP_R10("6") ", " AUTOEP_R2("7"), "72", "73", "74", AUTOEP_S144)                             \
  AUTOEP_WGMMA(T, TYPE, 160, A_ACROSS, B_ACROSS, AUTOEP_R80, "80", "81", "82", AUTOEP_S160)                                                                                                                \
  AUTOEP_WGMMA(T, TYPE, 176, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R8("8"), "88", "89", "90", AUTOEP_S176)                                                                                            \
  AUTOEP_WGMMA(T, TYPE, 192, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R10("8") ", " AUTOEP_R6("9"), "96", "97", "98", AUTOEP_S192)                                                                       \
  AUTOEP_WGMMA(T, TYPE, 208, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R10("8") ", " AUTOEP_R10("9") ", " AUTOEP_R4("10"), "104", "105", "106", AUTOEP_S208)                                              \
  AUTOEP_WGMMA(T, TYPE, 224, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R10("8") ", " AUTOEP_R10("9") ", " AUTOEP_R10("10") ", " AUTOEP_R2("11"), "112", "113", "114", AUTOEP_S224)                        \
  AUTOEP_WGMMA(T, TYPE, 240, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R10("8") ", " AUTOEP_R10("9") ", " AUTOEP_R10("10") ", " AUTOEP_R10("11"), "120", "121", "122", AUTOEP_S240)                       \
  AUTOEP_WGMMA(T, TYPE, 256, A_ACROSS, B_ACROSS, AUTOEP_R80 ", " AUTOEP_R10("8") ", " AUTOEP_R10("9") ", " AUTOEP_R10("10") ", " AUTOEP_R10("11") ", " AUTOEP_R8("12"), "128", "129", "130", AUTOEP_S256)

AUTOEP_WGMMAS(__nv_bfloat16, "bf16", 0, 0)
AUTOEP_WGMMAS(__nv_bfloat16, "bf16", 1, 0)
AUTOEP_WGMMAS(__nv_bfloat16, "bf16", 1, 1)
AUTOEP_WGMMAS(__half, "f16", 0, 0)
AUTOEP_WGMMAS(__half, "f16", 1, 0)
AUTOEP_WGMMAS(__half, "f16", 1, 1)

#undef AUTOEP_WGMMAS
#undef AUTOEP_WGMMA
#undef AUTOEP_S256
#undef AUTOEP_S240
#undef AUTOEP_S224
#undef AUTOEP_S208
#undef AUTOEP_S192
#undef AUTOEP_S176
#undef AUTOEP_S160
#undef AUTOEP_S144
#undef AUTOEP_S128
#undef AUTOEP_S112
#undef AUTOEP_S96
#undef AUTOEP_S80
#undef AUTOEP_S64
#undef AUTOEP_S48
#undef AUTOEP_S32
#undef AUTOEP_S16
#undef AUTOEP_S8
#undef AUTOEP_F64
#undef AUTOEP_F32
#undef AUTOEP_F16
#undef AUTOEP_F8
#undef AUTOEP_F4
#undef AUTOEP_R80
#undef AUTOEP_R40
#undef AUTOEP_R10
#undef AUTOEP_R8
#undef AUTOEP_R6
#undef AUTOEP_R4
#undef AUTOEP_R2

}  // namespace autoep::ops::cuda::hopper

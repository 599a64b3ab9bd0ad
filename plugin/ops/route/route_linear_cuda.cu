// SPDX-License-Identifier: Apache-2.0
// The router with the product that makes its logits, in one launch, for few tokens. A cluster takes some tokens: each of its blocks
// multiplies a part of the depth for all experts, then sums all blocks' parts for its share of the tokens, and routes them.
//
// A lane reads 16 bytes of a row at once. So it has 8 neighbouring values of the depth where mma wants two and two; which depth
// goes where does not matter as long as it is the same for both operands.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "plugin/ops/cluster.cuh"
#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/route/route.cuh"

namespace autoep::ops::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kTile = 8;   // experts
constexpr int kStep = 32;  // of the depth, that a warp takes at once
constexpr int kRows = 16;  // tokens of a product

// kTiles: of experts, a power of two. kProducts: of each warp's tiles, one for each kRows tokens. kBlocks: of a cluster.
template <int kTiles, int kProducts, int kBlocks>
struct Sizes {
  static constexpr int kOwn = std::clamp(kTiles / kWarps, std::min(kTiles, 4), 8);  // tiles of a warp
  static constexpr int kAcross = kTiles / kOwn;                                    // warps that share the experts
  static constexpr int kParts = kWarps / kAcross;                                  // of a block's depth, for warps
  static constexpr int kEach = kTiles < 4 ? 1 : kTiles / 4;                         // experts of a routing lane
  static constexpr int kTokens = kProducts * kRows;                                 // of a cluster
  static constexpr int kRouted = kTokens / kBlocks;                                 // of them by a block, a warp each
  static constexpr int kPitch = kTiles * kTile + 8;                                 // no two rows of a store meet in a bank
  static_assert(kRouted <= kWarps);

  float sums[kParts][kTokens][kPitch];
  float logits[kRouted][kEach * kWarp];
};

template <typename T>
__device__ __forceinline__ void Multiply(float (&sum)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b), "r"(c), "r"(d), "r"(e), "r"(f));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b), "r"(c), "r"(d), "r"(e), "r"(f));
  }
}

// Zeros where there is nothing. The compiler cannot move it behind a barrier.
__device__ __forceinline__ uint4 Read16(const void* base, int64_t at, bool any) {
  uint4 values{};
  const void* from = static_cast<const uint16_t*>(base) + at;
  asm volatile("{\n.reg .pred any;\nsetp.ne.s32 any, %5, 0;\n@any ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(values.x), "+r"(values.y), "+r"(values.z), "+r"(values.w)
               : "l"(from), "r"(static_cast<int>(any))
               : "memory");
  return values;
}

// This block's part of the depth, of all the cluster's tokens and all experts, into memory.sums.
template <typename T, int kTiles, int kProducts, int kBlocks>
__device__ void SumPart(const RouteCall& call, const RouteProduct& product, int64_t first, int64_t begin, int64_t end,
                        Sizes<kTiles, kProducts, kBlocks>& memory) {
  using S = Sizes<kTiles, kProducts, kBlocks>;
  const int warp = threadIdx.x / kWarp;
  const int row = threadIdx.x % kWarp / 4;
  const int quarter = threadIdx.x % 4;
  const int part = warp / S::kAcross;
  const int tile = warp % S::kAcross * S::kOwn;
  int64_t tokens[2 * kProducts], experts[S::kOwn];
#pragma unroll
  for (int i = 0; i < 2 * kProducts; ++i) tokens[i] = min(first + row + 8 * i, call.tokens - 1);
#pragma unroll
  for (int i = 0; i < S::kOwn; ++i) experts[i] = min(int64_t{(tile + i) * kTile + row}, call.experts - 1);
  float sums[kProducts][S::kOwn][4] = {};
  constexpr int kAtOnce = S::kOwn + 2 * kProducts <= 6 ? 4 : 2;  // steps whose reads are under way
  constexpr int kStride = S::kParts * kStep;
#pragma unroll 1
  for (int64_t base = begin + part * kStep; base < end; base += kAtOnce * kStride) {
    uint4 left[kAtOnce][2 * kProducts], right[kAtOnce][S::kOwn];
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step) {
      const int64_t at = base + step * kStride + quarter * 8;
#pragma unroll
      for (int i = 0; i < 2 * kProducts; ++i) left[step][i] = Read16(product.x, tokens[i] * product.hidden + at, at < end);
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) right[step][i] = Read16(product.gate, experts[i] * product.hidden + at, at < end);
    }
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kAtOnce; ++step) {
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        const uint4 low = left[step][2 * j], high = left[step][2 * j + 1];
#pragma unroll
        for (int i = 0; i < S::kOwn; ++i) {
          const uint4 other = right[step][i];
          Multiply<T>(sums[j][i], low.x, high.x, low.y, high.y, other.x, other.y);
          Multiply<T>(sums[j][i], low.z, high.z, low.w, high.w, other.z, other.w);
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kProducts; ++j) {
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
      float* to = &memory.sums[part][j * kRows + row][(tile + i) * kTile + quarter * 2];
      *reinterpret_cast<float2*>(to) = {sums[j][i][0], sums[j][i][1]};
      *reinterpret_cast<float2*>(to + 8 * S::kPitch) = {sums[j][i][2], sums[j][i][3]};
    }
  }
}

// All blocks' parts of this one's tokens, into memory.logits.
template <typename T, int kTiles, int kProducts, int kBlocks>
__device__ void SumParts(const RouteCall& call, const RouteProduct& product, int first, Sizes<kTiles, kProducts, kBlocks>& memory) {
  using S = Sizes<kTiles, kProducts, kBlocks>;
  for (int i = threadIdx.x; i < S::kRouted * S::kEach * kWarp; i += kWarps * kWarp) {
    const int token = i / (S::kEach * kWarp);
    const int expert = i % (S::kEach * kWarp);
    float logit = -INFINITY;
    if (expert < call.experts) {
      float parts[kBlocks][S::kParts];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int part = 0; part < S::kParts; ++part) {
          parts[block][part] = ReadAtPeer(&memory.sums[part][first + token][expert], block);
        }
      }
      logit = 0;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int part = 0; part < S::kParts; ++part) logit += parts[block][part];
      }
      if (product.bias != nullptr) logit += Widen<float>(static_cast<const T*>(product.bias)[expert]);
      if (product.rounds) logit = Widen<float>(Narrow<T>(logit));
    }
    memory.logits[token][expert] = logit;
  }
}

template <typename T, int kTiles, int kProducts, int kBlocks>
__global__ void __launch_bounds__(kWarps * kWarp) RouteLinear(RouteCall call, RouteProduct product) {
  using S = Sizes<kTiles, kProducts, kBlocks>;
  __shared__ S memory;
  const int rank = ClusterRank();
  const int64_t cluster = blockIdx.x / kBlocks;
  const int64_t share = (product.hidden + kBlocks * kStep - 1) / (kBlocks * kStep) * kStep;
  const int64_t begin = rank * share;
  const int64_t end = min(begin + share, product.hidden);
  LetNextGridStart();
  WaitForEarlierGrids();
  SumPart<T>(call, product, cluster * S::kTokens, begin, end, memory);
  SyncCluster();
  SumParts<T>(call, product, rank * S::kRouted, memory);
  __syncthreads();
  const int warp = threadIdx.x / kWarp;
  const int64_t token = cluster * S::kTokens + rank * S::kRouted + warp;
  if (warp < S::kRouted && token < call.tokens) {
    float logits[S::kEach];
#pragma unroll
    for (int i = 0; i < S::kEach; ++i) logits[i] = memory.logits[warp][threadIdx.x % kWarp + kWarp * i];
    __syncwarp();
    RouteToken(call, token, logits, memory.logits[warp]);
  }
  SyncCluster();  // others may still read here
}

template <typename T, int kTiles, int kProducts, int kBlocks>
cudaError_t Launch(const RouteCall& call, const RouteProduct& product, cudaStream_t stream) {
  constexpr int kTokens = Sizes<kTiles, kProducts, kBlocks>::kTokens;
  cudaLaunchAttribute attributes[] = {BeginsEarly(), InClusters(kBlocks)};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((call.tokens + kTokens - 1) / kTokens * kBlocks));
  config.blockDim = dim3(kWarps * kWarp);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, &RouteLinear<T, kTiles, kProducts, kBlocks>, call, product);
}

template <typename T>
cudaError_t LaunchSized(const RouteCall& call, const RouteProduct& product, cudaStream_t stream) {
  constexpr int64_t kFew = 128;  // tokens, whose clusters all run at once
  const bool few = call.tokens <= kFew;
  if (call.experts <= 8) return (few ? Launch<T, 1, 1, 8> : Launch<T, 1, 2, 4>)(call, product, stream);
  if (call.experts <= 32) return (few ? Launch<T, 4, 1, 8> : Launch<T, 4, 2, 4>)(call, product, stream);
  if (call.experts <= 64) return (few ? Launch<T, 8, 1, 8> : Launch<T, 8, 2, 4>)(call, product, stream);
  if (call.experts <= 128) return (few ? Launch<T, 16, 1, 8> : Launch<T, 16, 2, 4>)(call, product, stream);
  if (call.experts <= 256) return (few ? Launch<T, 32, 1, 8> : Launch<T, 32, 2, 4>)(call, product, stream);
  return (few ? Launch<T, 64, 1, 8> : Launch<T, 64, 1, 4>)(call, product, stream);
}

}  // namespace

bool RouteLinearCan(const RouteCall& call, const RouteProduct& product) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  // Measured on an H100: more work is sooner done by a product of its own.
  constexpr int64_t kMostTokens = 1024, kMostExperts = 512, kMostWork = 400'000'000;
  return CanWait() && call.tokens > 0 && call.tokens <= kMostTokens && call.experts <= kMostExperts &&
         call.tokens * call.experts * product.hidden <= kMostWork && product.hidden % 8 == 0 && aligned(product.x) &&
         aligned(product.gate) && (product.type == RowType::kHalf || product.type == RowType::kBFloat16);
}

cudaError_t RouteTokens(const RouteCall& call, const RouteProduct& product, cudaStream_t stream) {
  return product.type == RowType::kHalf ? LaunchSized<__half>(call, product, stream)
                                        : LaunchSized<__nv_bfloat16>(call, product, stream);
}

}  // namespace autoep::ops::cuda

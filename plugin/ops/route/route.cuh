// SPDX-License-Identifier: Apache-2.0
// One token's route by one warp: its scores in registers, the best choice taken top_k times.
#pragma once

#include <cmath>

#include "plugin/ops/route/route_cuda.h"
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {

inline constexpr unsigned kAll = ~0u;
inline constexpr int kWarp = 32;

__device__ inline float RoundTo(RowType type, float value) {
  if (type == RowType::kHalf) return static_cast<float>(__float2half(value));
  if (type == RowType::kBFloat16) return static_cast<float>(__float2bfloat16(value));
  return value;
}

__device__ inline void WriteAny(const Rows& matrix, int64_t i, float value) {
  if (matrix.type == RowType::kHalf) {
    static_cast<__half*>(matrix.data)[i] = __float2half(value);
  } else if (matrix.type == RowType::kBFloat16) {
    static_cast<__nv_bfloat16*>(matrix.data)[i] = __float2bfloat16(value);
  } else {
    static_cast<float*>(matrix.data)[i] = value;
  }
}

__device__ inline float WarpSum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Larger for larger floats; NaN above all, as topk has it; 0 is below all.
__device__ inline unsigned Key(float value) {
  if (isnan(value)) return kAll;
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline float OfKey(unsigned key) { return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key); }

// NaN where any is.
__device__ inline float WarpMax(float value) { return OfKey(__reduce_max_sync(kAll, Key(value))); }

// values[i] is expert lane + 32 i of a row; past the last expert they are `none`. No read waits for another: by masks, for of
// conditions the compiler makes branches.
template <int kEach, typename T>
__device__ __forceinline__ void ReadExperts(const T* row, int experts, int lane, float none, float (&values)[kEach]) {
  T read[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) read[i] = row[min(lane + kWarp * i, experts - 1)];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const unsigned mask = (lane + kWarp * i - experts) >> 31;  // all ones below
    values[i] = __uint_as_float((__float_as_uint(Widen<float>(read[i])) & mask) | (__float_as_uint(none) & ~mask));
  }
}

// Of the row that begins at `first`.
template <int kEach>
__device__ void ReadRow(const Rows& matrix, int64_t first, int experts, int lane, float none, float (&values)[kEach]) {
  if (matrix.type == RowType::kHalf) {
    ReadExperts(static_cast<const __half*>(matrix.data) + first, experts, lane, none, values);
  } else if (matrix.type == RowType::kBFloat16) {
    ReadExperts(static_cast<const __nv_bfloat16*>(matrix.data) + first, experts, lane, none, values);
  } else {
    ReadExperts(static_cast<const float*>(matrix.data) + first, experts, lane, none, values);
  }
}

// From logits to scores: [i] is expert lane + 32 i, and -INFINITY past the last.
template <int kEach>
__device__ void Score(const RouteCall& call, float (&scores)[kEach]) {
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    scores[i] = RoundTo(call.score_type, scores[i]);
    largest = fmaxf(largest, scores[i]);
  }
  if (call.scores == Scores::kSoftmax) {
    largest = WarpMax(largest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      scores[i] = expf(scores[i] - largest);
      sum += scores[i];
    }
    sum = WarpSum(sum);
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] = RoundTo(call.score_type, scores[i] / sum);
  } else if (call.scores == Scores::kSigmoid) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] = RoundTo(call.score_type, 1.0f / (1.0f + expf(-scores[i])));
  }
}

struct Choice {
  unsigned key;
  int expert;
};

// Of all lanes' keys the largest, of the lowest expert that has it; it becomes 0.
template <int kEach>
__device__ Choice TakeBest(unsigned (&keys)[kEach], int lane) {
  unsigned key = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) key = max(key, keys[i]);
  int expert = 0;
#pragma unroll
  for (int i = kEach - 1; i >= 0; --i) expert = keys[i] == key ? lane + kWarp * i : expert;
  const unsigned largest = __reduce_max_sync(kAll, key);
  const int best = static_cast<int>(__reduce_min_sync(kAll, key == largest ? static_cast<unsigned>(expert) : kAll));
#pragma unroll
  for (int i = 0; i < kEach; ++i) keys[i] = best == lane + kWarp * i ? 0 : keys[i];
  return {largest, best};
}

// Bit g is set where group g of `choice` is one of the best.
__device__ inline unsigned BestGroups(const RouteCall& call, int lane, const float* choice) {
  const int size = static_cast<int>(call.experts) / call.num_groups;
  unsigned key[] = {0};
  if (lane < call.num_groups) {
    float first = -INFINITY;
    float second = -INFINITY;
    for (int i = 0; i < size; ++i) {
      const float value = choice[lane * size + i];
      second = fmaxf(second, fminf(first, value));
      first = fmaxf(first, value);
    }
    key[0] = Key(call.group_max ? first : RoundTo(call.choice_type, first + second));
  }
  unsigned best = 0;
  for (int i = 0; i < call.top_groups; ++i) best |= 1u << TakeBest(key, lane).expert;
  return best;
}

// Of lane j: weight j, after what is done to the k of them.
__device__ inline float Renormalised(const RouteCall& call, int lane, float weight) {
  const bool mine = lane < call.top_k;
  weight = mine ? RoundTo(call.weight_type, weight) : 0;
  if (call.renorm == Renorm::kSoftmax) {
    const float largest = WarpMax(mine ? weight : -INFINITY);
    const float power = mine ? expf(weight - largest) : 0;
    weight = RoundTo(call.weight_type, power / WarpSum(power));
  } else if (call.renorm != Renorm::kNone) {
    float sum = RoundTo(call.weight_type, WarpSum(weight));
    if (call.renorm == Renorm::kClamp) sum = fmaxf(sum, call.renorm_min);
    if (call.renorm == Renorm::kSum && call.renorm_min != 0) sum = RoundTo(call.weight_type, sum + call.renorm_min);
    weight = RoundTo(call.weight_type, weight / sum);
  }
  return call.scale == 1 ? weight : RoundTo(call.weight_type, weight * call.scale);
}

// A warp: a token's choice from its logits, [i] of expert lane + 32 i. of_expert: shared memory for as many floats.
template <int kEach>
__device__ void RouteToken(const RouteCall& call, int64_t token, float (&scores)[kEach], float* of_expert) {
  const int lane = threadIdx.x % kWarp;
  const int experts = static_cast<int>(call.experts);
  float bias[kEach];
  if (call.bias.data != nullptr) ReadRow(call.bias, 0, experts, lane, 0, bias);
  Score(call, scores);
  float choice[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    choice[i] = call.bias.data == nullptr ? scores[i] : RoundTo(call.choice_type, scores[i] + bias[i]);
    if (call.num_groups > 1) of_expert[lane + kWarp * i] = choice[i];
  }
  if (call.num_groups > 1) {
    __syncwarp();
    const unsigned groups = BestGroups(call, lane, of_expert);
    const int size = experts / call.num_groups;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int expert = lane + kWarp * i;
      if (expert < experts && (groups >> (expert / size) & 1) == 0) choice[i] = call.group_fill;
    }
  }
  unsigned keys[kEach];  // 0: taken, or no expert
#pragma unroll
  for (int i = 0; i < kEach; ++i) keys[i] = lane + kWarp * i < experts ? Key(choice[i]) : 0;
  float mine = 0;
  int my_expert = 0;
#pragma unroll 1
  for (int j = 0; j < call.top_k; ++j) {
    const Choice best = TakeBest(keys, lane);
    if (lane == j) {
      mine = OfKey(best.key);
      my_expert = best.expert;
    }
  }
  if (!call.weigh_choice && (call.bias.data != nullptr || call.num_groups > 1)) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) of_expert[lane + kWarp * i] = scores[i];
    __syncwarp();
    if (lane < call.top_k) mine = of_expert[my_expert];
  }
  const float weight = Renormalised(call, lane, mine);
  if (lane < call.top_k) {
    WriteAny(call.weights, token * call.top_k + lane, weight);
    call.ids[token * call.top_k + lane] = my_expert;
  }
}

}  // namespace autoep::ops::cuda

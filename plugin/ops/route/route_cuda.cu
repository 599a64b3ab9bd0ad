// SPDX-License-Identifier: Apache-2.0
// The router on CUDA and its gradient: one warp a token, its scores in registers, the best choice taken top_k times.
#include <cmath>

#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/route/route_cuda.h"
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

constexpr unsigned kAll = ~0u;
constexpr int kWarp = 32;
constexpr int kTokensPerBlock = 4;

__device__ float RoundTo(RowType type, float value) {
  if (type == RowType::kHalf) return static_cast<float>(__float2half(value));
  if (type == RowType::kBFloat16) return static_cast<float>(__float2bfloat16(value));
  return value;
}

__device__ void WriteAny(const Rows& matrix, int64_t i, float value) {
  if (matrix.type == RowType::kHalf) {
    static_cast<__half*>(matrix.data)[i] = __float2half(value);
  } else if (matrix.type == RowType::kBFloat16) {
    static_cast<__nv_bfloat16*>(matrix.data)[i] = __float2bfloat16(value);
  } else {
    static_cast<float*>(matrix.data)[i] = value;
  }
}

__device__ float WarpSum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Larger for larger floats; NaN above all, as topk has it; 0 is below all.
__device__ unsigned Key(float value) {
  if (isnan(value)) return kAll;
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ float OfKey(unsigned key) { return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key); }

// NaN where any is.
__device__ float WarpMax(float value) { return OfKey(__reduce_max_sync(kAll, Key(value))); }

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

// scores[i] is expert lane + 32 i.
template <int kEach>
__device__ void Score(const RouteCall& call, int64_t token, int lane, float (&scores)[kEach]) {
  ReadRow(call.logits, token * call.experts, static_cast<int>(call.experts), lane, -INFINITY, scores);
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
__device__ unsigned BestGroups(const RouteCall& call, int lane, const float* choice) {
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
__device__ float Renormalised(const RouteCall& call, int lane, float weight) {
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

template <int kEach>
__global__ void Route(RouteCall call) {
  extern __shared__ float memory[];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t token = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  LetNextGridStart();
  WaitForEarlierGrids();
  if (token >= call.tokens) return;
  const int experts = static_cast<int>(call.experts);
  float* of_expert = memory + warp * kEach * kWarp;
  float bias[kEach];
  if (call.bias.data != nullptr) ReadRow(call.bias, 0, experts, lane, 0, bias);
  float scores[kEach];
  Score(call, token, lane, scores);
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

// Of lane j: the gradient of the choice's weight before Renormalised, from the one after it.
__device__ float RenormalisedGrad(const RouteCall& call, int lane, float weight, float grad) {
  const bool mine = lane < call.top_k;
  weight = mine ? RoundTo(call.weight_type, weight) : 0;
  grad *= call.scale;
  if (call.renorm == Renorm::kNone) return grad;
  if (call.renorm == Renorm::kSoftmax) {
    const float largest = WarpMax(mine ? weight : -INFINITY);
    const float power = mine ? expf(weight - largest) : 0;
    const float share = power / WarpSum(power);
    return share * (grad - WarpSum(grad * share));
  }
  const float whole = RoundTo(call.weight_type, WarpSum(weight));
  const bool clamped = call.renorm == Renorm::kClamp && whole < call.renorm_min;
  const float sum = clamped ? call.renorm_min : call.renorm == Renorm::kSum ? whole + call.renorm_min : whole;
  const float through_sum = WarpSum(grad * weight) / sum;
  return (clamped ? grad : grad - through_sum) / sum;
}

template <int kEach>
__global__ void Backward(RouteCall call, Rows weights_grad, Rows logits_grad) {
  extern __shared__ float memory[];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t token = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  if (token >= call.tokens) return;
  float* of_expert = memory + warp * kEach * kWarp;
  float scores[kEach];
  Score(call, token, lane, scores);
#pragma unroll
  for (int i = 0; i < kEach; ++i) of_expert[lane + kWarp * i] = scores[i];
  __syncwarp();
  const bool mine = lane < call.top_k;
  const int64_t choice = token * call.top_k + lane;
  const int64_t expert = mine ? call.ids[choice] : 0;
  const float score = mine ? of_expert[expert] : 0;
  float weight = score;
  if (mine && call.weigh_choice && call.bias.data != nullptr) {
    weight = RoundTo(call.choice_type, score + ReadAny<float>(call.bias, expert));
  }
  const float grad = RenormalisedGrad(call, lane, weight, mine ? ReadAny<float>(weights_grad, choice) : 0);
  const float through_softmax = WarpSum(mine ? grad * score : 0);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kEach; ++i) of_expert[lane + kWarp * i] = 0;
  __syncwarp();
  if (mine) of_expert[expert] = grad;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int here = lane + kWarp * i;
    if (here >= call.experts) continue;
    float value = of_expert[here];
    if (call.scores == Scores::kSoftmax) value = scores[i] * (value - through_softmax);
    if (call.scores == Scores::kSigmoid) value *= scores[i] * (1 - scores[i]);
    WriteAny(logits_grad, token * call.experts + here, value);
  }
}

// Calls launch.operator()<experts of a lane>(grid, threads of a block, bytes of shared memory).
template <typename LaunchKernel>
void VisitSize(const RouteCall& call, LaunchKernel launch) {
  if (call.tokens == 0) return;
  const auto start = [&]<int kEach>() {
    const unsigned blocks = static_cast<unsigned>((call.tokens + kTokensPerBlock - 1) / kTokensPerBlock);
    launch.template operator()<kEach>(blocks, kTokensPerBlock * kWarp, kTokensPerBlock * kEach * kWarp * sizeof(float));
  };
  if (call.experts <= 32) return start.template operator()<1>();
  if (call.experts <= 64) return start.template operator()<2>();
  if (call.experts <= 128) return start.template operator()<4>();
  if (call.experts <= 256) return start.template operator()<8>();
  if (call.experts <= 512) return start.template operator()<16>();
  start.template operator()<32>();
}

}  // namespace

void RouteTokens(const RouteCall& call, cudaStream_t stream) {
  VisitSize(call, [&]<int kEach>(unsigned blocks, int threads, size_t shared) {
    LaunchDependent(&Route<kEach>, blocks, threads, shared, stream, call);
  });
}

void RouteTokensBackward(const RouteCall& call, Rows weights_grad, Rows logits_grad, cudaStream_t stream) {
  VisitSize(call, [&]<int kEach>(unsigned blocks, int threads, size_t shared) {
    Backward<kEach><<<blocks, threads, shared, stream>>>(call, weights_grad, logits_grad);
  });
}

}  // namespace autoep::ops::cuda

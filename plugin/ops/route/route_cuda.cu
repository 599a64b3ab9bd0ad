// SPDX-License-Identifier: Apache-2.0
// The router on CUDA and its gradient: one warp a token.
#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/route/route.cuh"

namespace autoep::ops::cuda {
namespace {

constexpr int kTokensPerBlock = 4;

template <int kEach>
__global__ void Route(RouteCall call) {
  extern __shared__ float memory[];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t token = int64_t{blockIdx.x} * kTokensPerBlock + warp;
  LetNextGridStart();
  WaitForEarlierGrids();
  if (token >= call.tokens) return;
  float logits[kEach];
  ReadRow(call.logits, token * call.experts, static_cast<int>(call.experts), lane, -INFINITY, logits);
  RouteToken(call, token, logits, memory + warp * kEach * kWarp);
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
  ReadRow(call.logits, token * call.experts, static_cast<int>(call.experts), lane, -INFINITY, scores);
  Score(call, scores);
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

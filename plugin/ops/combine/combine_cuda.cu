// SPDX-License-Identifier: Apache-2.0
// combine on CUDA: one block a token, its choices added in order; no atomics, so the sum is the same every time.
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

template <typename From, typename To>
__global__ void Combine(const From* from, const Sum<To>* factors, const int64_t* order, int64_t choices, int64_t hidden, To* to) {
  const int64_t token = blockIdx.x;
  for (int64_t i = threadIdx.x; i < hidden; i += kThreads) {
    Sum<To> sum = 0;
    for (int64_t pair = token * choices; pair < (token + 1) * choices; ++pair) {
      const Sum<To> factor = factors == nullptr ? Sum<To>{1} : factors[pair];
      sum += factor * Widen<Sum<To>>(from[order[pair] * hidden + i]);
    }
    to[token * hidden + i] = Narrow<To>(sum);
  }
}

template <typename Row, typename Token>
__global__ void Dot(const Token* tokens, const Row* rows, const int64_t* order, int64_t choices, int64_t hidden, Sum<Token>* to) {
  __shared__ Sum<Token> partial[kThreads];
  const int64_t pair = blockIdx.x;
  const Token* token = tokens + pair / choices * hidden;
  const Row* row = rows + order[pair] * hidden;
  Sum<Token> sum = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += kThreads) sum += Widen<Sum<Token>>(token[i]) * Widen<Sum<Token>>(row[i]);
  partial[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) to[pair] = partial[0];
}

}  // namespace

void SumRows(Rows from, const void* factors, const int64_t* order, int64_t tokens, int64_t choices, int64_t hidden, Rows to,
             cudaStream_t stream) {
  if (tokens == 0) return;
  VisitPair(from.type, to.type, [&]<typename From, typename To>() {
    Combine<<<tokens, kThreads, 0, stream>>>(static_cast<const From*>(from.data), static_cast<const Sum<To>*>(factors), order,
                                             choices, hidden, static_cast<To*>(to.data));
  });
}

void DotRows(Rows tokens, Rows rows, const int64_t* order, int64_t pairs, int64_t choices, int64_t hidden, void* to,
             cudaStream_t stream) {
  if (pairs == 0) return;
  VisitPair(rows.type, tokens.type, [&]<typename Row, typename Token>() {
    Dot<<<pairs, kThreads, 0, stream>>>(static_cast<const Token*>(tokens.data), static_cast<const Row*>(rows.data), order, choices,
                                        hidden, static_cast<Sum<Token>*>(to));
  });
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// combine on CUDA: each thread adds its columns of a token's choices, in order; no atomics, so the sum is the same every time.
#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

// What is read only here since long, and has left the L2 cache: brings it back beside the grid that makes the rows.
__device__ __forceinline__ void PrefetchChoice(const Rows& factors, const Order& order, int64_t pair) {
  VisitPositions(order, [&](const auto* positions) { PrefetchToL2(positions + pair); });
  if (factors.data != nullptr) VisitValues(factors, [&](const auto* values) { PrefetchToL2(values + pair); });
}

// kChoices 0: as many as `choices` says.
template <typename From, typename To, int W, int kChoices>
__global__ void Combine(const From* from, Rows factors, Order order, int64_t choices, int64_t hidden, To* to) {
  using S = std::conditional_t<std::is_same_v<From, double>, double, Sum<To>>;
  const int64_t token = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * W;
  if (threadIdx.x < choices) PrefetchChoice(factors, order, token * choices + threadIdx.x);
  WaitForEarlierGrids();
  if (column >= hidden) return;
  S sum[W] = {};
  const auto add = [&](const Vector<From, W>& row, S factor) {
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += factor * Widen<S>(row.at[i]);
  };
  const auto row_at = [&](int64_t position) {
    return *reinterpret_cast<const Vector<From, W>*>(from + position * hidden + column);
  };
  if constexpr (kChoices > 0) {
    const int64_t first = token * kChoices;
    int64_t position[kChoices];
    VisitPositions(order, [&](const auto* positions) {
#pragma unroll
      for (int j = 0; j < kChoices; ++j) position[j] = positions[first + j];
    });
    S factor[kChoices];
#pragma unroll
    for (int j = 0; j < kChoices; ++j) factor[j] = 1;
    if (factors.data != nullptr) {
      VisitValues(factors, [&](const auto* values) {
#pragma unroll
        for (int j = 0; j < kChoices; ++j) factor[j] = Widen<S>(values[first + j]);
      });
    }
    Vector<From, W> rows[kChoices];
#pragma unroll
    for (int j = 0; j < kChoices; ++j) {
      if (position[j] < order.rows) rows[j] = row_at(position[j]);
    }
#pragma unroll
    for (int j = 0; j < kChoices; ++j) {
      if (position[j] < order.rows) add(rows[j], factor[j]);
    }
  } else {
    for (int64_t pair = token * choices; pair < (token + 1) * choices; ++pair) {
      const int64_t position = PositionAt(order, pair);
      if (position < order.rows) add(row_at(position), factors.data == nullptr ? S{1} : ReadAny<S>(factors, pair));
    }
  }
  Vector<To, W> out;
#pragma unroll
  for (int i = 0; i < W; ++i) out.at[i] = Narrow<To>(sum[i]);
  *reinterpret_cast<Vector<To, W>*>(to + token * hidden + column) = out;
}

// A warp a pair.
template <typename Row, typename Token, int W>
__global__ void Dot(const Token* tokens, const Row* rows, Order order, int64_t pairs, int64_t choices, int64_t hidden,
                    Sum<Token>* to) {
  const int64_t pair = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (pair >= pairs) return;
  const Token* token = tokens + pair / choices * hidden;
  const int64_t position = PositionAt(order, pair);
  const Row* row = rows + position * hidden;
  const int64_t end = position < order.rows ? hidden : 0;
  Sum<Token> sum = 0;
  for (int64_t column = threadIdx.x % 32 * W; column < end; column += 32 * W) {
    const auto left = *reinterpret_cast<const Vector<Token, W>*>(token + column);
    const auto right = *reinterpret_cast<const Vector<Row, W>*>(row + column);
#pragma unroll
    for (int i = 0; i < W; ++i) sum += Widen<Sum<Token>>(left.at[i]) * Widen<Sum<Token>>(right.at[i]);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) to[pair] = sum;
}

template <typename From, typename To, int W>
void LaunchCombine(Rows from, Rows factors, Order order, int64_t tokens, int64_t choices, int64_t hidden, Rows to,
                   cudaStream_t stream) {
  const RowGrid grid = GridFor(tokens, hidden / W);
  const auto launch = [&]<int kChoices>() {
    LaunchDependent(&Combine<From, To, W, kChoices>, grid.blocks, grid.threads, 0, stream, static_cast<const From*>(from.data),
                    factors, order, choices, hidden, static_cast<To*>(to.data));
  };
  if (W > 1 && choices == 8) {
    launch.template operator()<8>();
  } else if (W > 1 && choices == 4) {
    launch.template operator()<4>();
  } else if (W > 1 && choices == 2) {
    launch.template operator()<2>();
  } else {
    launch.template operator()<0>();
  }
}

}  // namespace

void SumRows(Rows from, Rows factors, Order order, int64_t tokens, int64_t choices, int64_t hidden, Rows to, cudaStream_t stream) {
  if (tokens == 0 || hidden == 0) return;
  VisitPair(from.type, to.type, [&]<typename From, typename To>() {
    if (Vectors<From>(hidden, from.data, to.data)) {
      LaunchCombine<From, To, kVector<From>>(from, factors, order, tokens, choices, hidden, to, stream);
    } else {
      LaunchCombine<From, To, 1>(from, factors, order, tokens, choices, hidden, to, stream);
    }
  });
}

void DotRows(Rows tokens, Rows rows, Order order, int64_t pairs, int64_t choices, int64_t hidden, void* to, cudaStream_t stream) {
  if (pairs == 0) return;
  const int64_t blocks = (pairs * 32 + kThreads - 1) / kThreads;
  VisitPair(rows.type, tokens.type, [&]<typename Row, typename Token>() {
    const auto launch = [&]<int W>() {
      Dot<Row, Token, W><<<blocks, kThreads, 0, stream>>>(static_cast<const Token*>(tokens.data),
                                                          static_cast<const Row*>(rows.data), order, pairs, choices, hidden,
                                                          static_cast<Sum<Token>*>(to));
    };
    if (Vectors<Row>(hidden, tokens.data, rows.data)) {
      launch.template operator()<kVector<Row>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

}  // namespace autoep::ops::cuda

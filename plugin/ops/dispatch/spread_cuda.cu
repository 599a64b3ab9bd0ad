// SPDX-License-Identifier: Apache-2.0
// Token rows to the positions of their pairs: each is read once and written once for each of its choices.
#include "plugin/ops/dependent_launch.cuh"
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

template <typename To, typename From, int W>
__global__ void Spread(const From* from, int64_t pitch, Rows factors, Order order, int64_t choices, int64_t hidden, To* to) {
  using S = Sum<From>;
  WaitForEarlierGrids();
  LetNextGridStart();  // which may take what is older than this grid for done, hence the order
  const int64_t token = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * W;
  if (column >= hidden) return;
  const auto row = *reinterpret_cast<const Vector<From, W>*>(from + token * pitch + column);
  for (int64_t pair = token * choices; pair < (token + 1) * choices; ++pair) {
    const int64_t position = PositionAt(order, pair);
    if (position >= order.rows) continue;
    Vector<To, W> out;
    const S factor = factors.data == nullptr ? S{1} : ReadAny<S>(factors, pair);
#pragma unroll
    for (int i = 0; i < W; ++i) out.at[i] = Narrow<To>(Widen<S>(row.at[i]) * factor);
    *reinterpret_cast<Vector<To, W>*>(to + position * hidden + column) = out;
  }
}

}  // namespace

void SpreadRows(Rows from, int64_t pitch, Rows factors, Order order, int64_t tokens, int64_t choices, int64_t hidden, Rows to,
                cudaStream_t stream) {
  if (tokens == 0 || choices == 0 || hidden == 0) return;
  VisitPair(to.type, from.type, [&]<typename To, typename From>() {
    const auto launch = [&]<int W>() {
      const RowGrid grid = GridFor(tokens, hidden / W);
      LaunchDependent(&Spread<To, From, W>, grid.blocks, grid.threads, 0, stream, static_cast<const From*>(from.data), pitch,
                      factors, order, choices, hidden, static_cast<To*>(to.data));
    };
    if (Vectors<To>(hidden, from.data, to.data) && pitch % kVector<To> == 0) {
      launch.template operator()<kVector<To>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

}  // namespace autoep::ops::cuda

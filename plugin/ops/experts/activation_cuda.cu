// SPDX-License-Identifier: Apache-2.0
// Activations over rows, forward and backward: one pass over memory, in fp32 or fp64 whatever the rows are.
#include "plugin/ops/experts/activation.cuh"
#include "plugin/ops/rows_cuda.cuh"

namespace autoep::ops::cuda {
namespace {

template <typename T, int W>
__device__ Vector<T, W> Load(const T* from) {
  return *reinterpret_cast<const Vector<T, W>*>(from);
}

template <typename T, int W>
__device__ void Store(T* to, const Vector<T, W>& values) {
  *reinterpret_cast<Vector<T, W>*>(to) = values;
}

// The first slot that ends above `row`.
__device__ int64_t SlotOfRow(const int32_t* ends, int64_t slots, int64_t row) {
  int64_t low = 0;
  int64_t high = slots - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ends[middle] > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

struct Bias {
  const void* data;
  const int32_t* ends;
  int64_t slots;
};

// row[column] += bias, rounded to T.
template <typename T, int W>
__device__ Vector<T, W> Biased(T* row, int64_t column, const T* bias) {
  Vector<T, W> values = Load<T, W>(row + column);
  if (bias == nullptr) return values;
#pragma unroll
  for (int i = 0; i < W; ++i) values.at[i] = Narrow<T>(Widen<Sum<T>>(values.at[i]) + Widen<Sum<T>>(bias[column + i]));
  Store(row + column, values);
  return values;
}

template <typename T>
__device__ const T* BiasOfRow(const Bias& bias, int64_t row, int64_t width) {
  if (bias.data == nullptr) return nullptr;
  return static_cast<const T*>(bias.data) + SlotOfRow(bias.ends, bias.slots, row) * width;
}

template <typename T, int W>
__global__ void Forward(ActivationCall call, T* hidden, Bias bias, int64_t inner, T* out) {
  const int64_t row = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * W;
  if (column >= inner) return;
  const int64_t width = call.spec.gated ? 2 * inner : inner;
  T* from = hidden + row * width;
  const T* slot_bias = BiasOfRow<T>(bias, row, width);
  const Vector<T, W> first = Biased<T, W>(from, column, slot_bias);
  Vector<T, W> result;
  if (call.spec.gated) {
    const Vector<T, W> second = Biased<T, W>(from, inner + column, slot_bias);
#pragma unroll
    for (int i = 0; i < W; ++i) result.at[i] = Narrow<T>(Gated(call, Widen<Sum<T>>(first.at[i]), Widen<Sum<T>>(second.at[i])));
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) result.at[i] = Narrow<T>(Activate(call, Widen<Sum<T>>(first.at[i])).value);
  }
  Store(out + row * inner + column, result);
}

template <typename S>
__device__ S SumOverBlock(S value) {
  __shared__ S sums[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  S total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x / 32); ++warp) total += sums[warp];
  return total;
}

template <typename T, int W>
struct Gradients {
  Vector<T, W> first, second, activated;  // of the gate, or of all; of up; and the activated values themselves times the factor
};

// Adds the sum of grad times the activated values to `dot`.
template <typename T, int W>
__device__ __forceinline__ Gradients<T, W> GradientsOf(const ActivationCall& call, const Vector<T, W>& grad,
                                                       const Vector<T, W>& first, const Vector<T, W>& second, Sum<T> factor,
                                                       Sum<T>& dot) {
  using S = Sum<T>;
  Gradients<T, W> out;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const S in = Widen<S>(grad.at[i]);
    S gate = Widen<S>(first.at[i]);
    S up = Widen<S>(second.at[i]);
    S activated;
    if (call.spec.gated) {
      activated = Gated(call, gate, up);
      GatedBackward(call, in * factor, gate, up);
    } else {
      const Slope<S> at = Activate(call, gate);
      activated = at.value;
      gate = in * factor * at.slope;
    }
    dot += in * activated;
    out.first.at[i] = Narrow<T>(gate);
    out.second.at[i] = Narrow<T>(up);
    out.activated.at[i] = Narrow<T>(factor * activated);
  }
  return out;
}

template <typename T, int W>
__global__ void Backward(ActivationCall call, const T* hidden, const T* grad, int64_t inner, T* grad_hidden,
                         ChoiceFactors choices) {
  using S = Sum<T>;
  const int64_t row = blockIdx.x;
  const int64_t width = call.spec.gated ? 2 * inner : inner;
  int64_t choice = 0;
  S factor = 1;
  const auto read_choice = [&] {
    if (choices.sorted == nullptr) return;
    choice = choices.sorted[row];
    if (choices.factors.data != nullptr) factor = ReadAny<S>(choices.factors, choice);
  };
  S dot = 0;
  VisitActivation(call.spec.kind, [&]<contract::Activation kKind>() {
    ActivationCall known = call;
    known.spec.kind = kKind;
    for (int64_t column = int64_t{threadIdx.x} * W; column < inner; column += int64_t{blockDim.x} * W) {
      const Vector<T, W> incoming = Load<T, W>(grad + row * inner + column);
      const Vector<T, W> first = Load<T, W>(hidden + row * width + column);
      const Vector<T, W> second = call.spec.gated ? Load<T, W>(hidden + row * width + inner + column) : first;
      if (column == int64_t{threadIdx.x} * W) read_choice();  // the row's loads are on their way then
      const Gradients<T, W> grads = GradientsOf(known, incoming, first, second, factor, dot);
      Store(grad_hidden + row * width + column, grads.first);
      if (call.spec.gated) Store(grad_hidden + row * width + inner + column, grads.second);
      if (choices.scaled != nullptr) Store(static_cast<T*>(choices.scaled) + row * inner + column, grads.activated);
    }
  });
  if (choices.dots == nullptr) return;
  dot = SumOverBlock(dot);
  if (threadIdx.x == 0) static_cast<S*>(choices.dots)[choice] = dot;
}

template <typename T, int W>
__global__ void Add(T* out, Bias bias, int64_t columns) {
  const int64_t row = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * W;
  if (column < columns) Biased<T, W>(out + row * columns, column, BiasOfRow<T>(bias, row, columns));
}

// A block takes W columns a lane, and its warps take turns at the slot's rows.
template <typename T, int W>
__global__ void AddUp(const T* rows, Rows factors, const int32_t* sorted, const int32_t* ends, int64_t columns, T* out) {
  using S = Sum<T>;
  constexpr int kLanes = 32, kWarps = kThreads / kLanes;
  __shared__ S sums[kWarps][kLanes * W];
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int64_t slot = blockIdx.x;
  const int64_t first = int64_t{blockIdx.y} * kLanes * W;
  const int64_t column = first + lane * W;
  const int64_t end = column < columns ? ends[slot] : 0;
  S sum[W] = {};
#pragma unroll 4
  for (int64_t row = (slot == 0 ? 0 : ends[slot - 1]) + warp; row < end; row += kWarps) {
    const Vector<T, W> values = Load<T, W>(rows + row * columns + column);
    const S factor = factors.data == nullptr ? S{1} : ReadAny<S>(factors, sorted[row]);
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += factor * Widen<S>(values.at[i]);
  }
#pragma unroll
  for (int i = 0; i < W; ++i) sums[warp][lane * W + i] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < kLanes * W && first + i < columns; i += kThreads) {
    S total = 0;
    for (int part = 0; part < kWarps; ++part) total += sums[part][i];
    out[slot * columns + first + i] = Narrow<T>(total);
  }
}

}  // namespace

void ActivateRows(const ActivationCall& call, Rows hidden, const void* bias, const int32_t* ends, int64_t slots, int64_t rows,
                  int64_t inner, void* out, cudaStream_t stream) {
  if (rows == 0 || inner == 0) return;
  VisitPair(hidden.type, hidden.type, [&]<typename T, typename>() {
    const auto launch = [&]<int W>() {
      const RowGrid grid = GridFor(rows, inner / W);
      Forward<T, W><<<grid.blocks, grid.threads, 0, stream>>>(call, static_cast<T*>(hidden.data), Bias{bias, ends, slots}, inner,
                                                              static_cast<T*>(out));
    };
    if (Vectors<T>(inner, hidden.data, out)) {
      launch.template operator()<kVector<T>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

void ActivateRowsBackward(const ActivationCall& call, Rows hidden, const void* grad, int64_t rows, int64_t inner, void* grad_hidden,
                          const ChoiceFactors* choices, cudaStream_t stream) {
  if (rows == 0 || inner == 0) return;
  VisitPair(hidden.type, hidden.type, [&]<typename T, typename>() {
    const auto launch = [&]<int W>() {
      const RowGrid grid = GridFor(rows, inner / W);
      Backward<T, W><<<dim3(grid.blocks.x), grid.threads, 0, stream>>>(
          call, static_cast<const T*>(hidden.data), static_cast<const T*>(grad), inner, static_cast<T*>(grad_hidden),
          choices == nullptr ? ChoiceFactors{} : *choices);
    };
    const void* scaled = choices == nullptr ? nullptr : choices->scaled;
    if (Vectors<T>(inner, hidden.data, grad) && Vectors<T>(inner, grad_hidden, scaled)) {
      launch.template operator()<kVector<T>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

void AddBias(Rows out, const void* bias, const int32_t* ends, int64_t slots, int64_t rows, int64_t columns, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  VisitPair(out.type, out.type, [&]<typename T, typename>() {
    const auto launch = [&]<int W>() {
      const RowGrid grid = GridFor(rows, columns / W);
      Add<T, W><<<grid.blocks, grid.threads, 0, stream>>>(static_cast<T*>(out.data), Bias{bias, ends, slots}, columns);
    };
    if (Vectors<T>(columns, out.data, out.data)) {
      launch.template operator()<kVector<T>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

void SumGroups(Rows rows, Rows factors, const int32_t* sorted, const int32_t* ends, int64_t slots, int64_t columns, void* out,
               cudaStream_t stream) {
  if (slots == 0 || columns == 0) return;
  VisitPair(rows.type, rows.type, [&]<typename T, typename>() {
    const auto launch = [&]<int W>() {
      const dim3 blocks(static_cast<unsigned>(slots), static_cast<unsigned>((columns + 32 * W - 1) / (32 * W)));
      AddUp<T, W><<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(rows.data), factors, sorted, ends, columns,
                                                   static_cast<T*>(out));
    };
    if (Vectors<T>(columns, rows.data, rows.data)) {
      launch.template operator()<kVector<T>>();
    } else {
      launch.template operator()<1>();
    }
  });
}

}  // namespace autoep::ops::cuda

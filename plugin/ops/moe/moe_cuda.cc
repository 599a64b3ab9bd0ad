// SPDX-License-Identifier: Apache-2.0
// moe in four or five launches: order, the tokens' rows to their places or not, up with the activation, down, and the weighted sum.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <utility>

#include "plugin/ops/experts/hopper_cuda.h"
#include "plugin/ops/grouped/grouped_cuda.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/moe/moe.h"

namespace autoep::ops::cuda {

namespace {

// Rows are gathered by the up projection itself where copying them first would cost more than its slower loads: where reading
// weights is what takes time, or nearly so and an expert's inner size is small. Measured on an H100.
bool Gathers(const MoeCall& call) {
  constexpr int64_t kSmallInner = 1024, kFewRows = 160;
  const int64_t slots = call.experts.gate_up.size(0);
  return ReadsWeights(call.num_rows, slots) || (call.experts.down.size(2) <= kSmallInner && call.num_rows / slots <= kFewRows);
}

// Where the sort and the products write, in one piece, for in a small call it is the host that takes time. What the gradient
// keeps of the products would keep all of it: they then make their own. The last product's rows take the place of the tokens'
// copies where there are some.
class Piece {
 public:
  Piece(const MoeCall& call, bool gather, bool keep) {
    const int64_t count = call.ids.numel();
    const int64_t placed = call.placement.size(0);
    const int64_t activated = keep ? 0 : Halves(call.num_rows * call.experts.down.size(2));
    const int64_t hidden = call.experts.activation.gated ? 0 : activated;
    const int64_t out = keep || !gather ? 0 : Halves(call.num_rows * call.experts.down.size(1));
    const int64_t numbers = count * (1 + (gather ? 1 : 0) + (keep ? 1 : 0)) + placed + 2;
    memory_ = at::empty({hidden + activated + out + numbers}, call.ids.options().dtype(at::kInt));
    int32_t* next = memory_.mutable_data_ptr<int32_t>();
    const auto take = [&](int64_t size) { return size == 0 ? nullptr : std::exchange(next, next + size); };
    products = {take(hidden), take(activated), take(out)};
    pairs.short_order = take(count);
    pairs.ends = take(placed);
    pairs.zeros = take(2);
    if (gather) pairs.tokens = take(count);
    if (keep) pairs.sorted = take(count);
  }

  at::Tensor Part(const int32_t* from, int64_t count) const {
    return memory_.narrow(0, from - memory_.const_data_ptr<int32_t>(), count);
  }

  PairsOut pairs{};
  ForwardBuffers products{};  // null with `keep`, and out without `gather`

 private:
  // 32-bit values that hold so many of 16 bits, and fill up 256 bytes.
  static int64_t Halves(int64_t count) { return (count + 127) / 128 * 64; }

  at::Tensor memory_;
};

}  // namespace

bool MoeRuns(const MoeCall& call) {
  const at::ScalarType type = call.experts.rows.scalar_type();
  return call.num_rows > 0 && HopperRuns(call.experts, call.num_rows) && (call.dtype == type || call.dtype == at::kFloat);
}

at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved) {
  const at::Tensor& x = call.experts.rows;
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t choices = call.ids.size(1);
  const bool gather = Gathers(call);
  Piece piece(call, gather, saved != nullptr);
  LaunchOrder(call.ids, call.placement, 1, call.layer, piece.pairs);
  const Order order{piece.pairs.short_order, true, call.num_rows};
  ExpertsCall experts = call.experts;
  at::Tensor copies;
  if (!gather) {
    experts.rows = copies = at::empty({call.num_rows, x.size(1)}, x.options());
    SpreadRows(RowsOf(x), x.size(1), RowsOrNone({}), order, x.size(0), choices, x.size(1), RowsOf(copies), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    piece.products.out = copies.data_ptr();
  }
  const GroupedRows rows{call.num_rows, piece.pairs.ends, piece.pairs.tokens, !gather, piece.pairs.zeros};
  ExpertsOut kept;
  if (saved == nullptr) {
    HopperForward(experts, rows, piece.products);
  } else {
    kept = HopperForward(experts, rows, true, copies);
    *saved = {kept.hidden,
              piece.Part(piece.pairs.short_order, call.ids.numel()).view(call.ids.sizes()),
              piece.Part(piece.pairs.ends, experts.gate_up.size(0)),
              piece.Part(piece.pairs.sorted, call.ids.numel()),
              {}};
  }
  const Rows out{saved == nullptr ? piece.products.out : kept.out.data_ptr(), RowTypeOf(x.scalar_type())};
  const at::Tensor weights = call.weights ? call.weights->contiguous() : at::Tensor();
  const at::Tensor sum = call.out.defined() ? call.out : at::empty(x.sizes(), x.options().dtype(call.dtype));
  SumRows(out, RowsOrNone(weights), order, x.size(0), choices, x.size(1), RowsOf(sum), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return sum;
}

}  // namespace autoep::ops::cuda

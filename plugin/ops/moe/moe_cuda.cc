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

// Rows are gathered by the up projection itself where reading weights is what takes time, and copying them first would cost more
// than the slower loads.
bool Gathers(const MoeCall& call) { return ReadsWeights(call.num_rows, call.experts.gate_up.size(0)); }

}  // namespace

bool MoeRuns(const MoeCall& call) {
  const at::ScalarType type = call.experts.rows.scalar_type();
  return call.num_rows > 0 && HopperRuns(call.experts, call.num_rows) && (call.dtype == type || call.dtype == at::kFloat);
}

at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved) {
  const at::Tensor& x = call.experts.rows;
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t pairs = call.ids.numel();
  const int64_t choices = call.ids.size(1);
  const int64_t placed = call.placement.size(0);
  const bool gather = Gathers(call);
  // In one piece, for in a small call it is the host that takes time.
  const at::Tensor numbers =
      at::empty({pairs * (1 + (gather ? 1 : 0) + (saved != nullptr ? 1 : 0)) + placed + 2}, call.ids.options().dtype(at::kInt));
  int64_t taken = 0;
  const auto take = [&](int64_t count) { return numbers.mutable_data_ptr<int32_t>() + std::exchange(taken, taken + count); };
  PairsOut out{};
  out.short_order = take(pairs);
  out.ends = take(placed);
  out.zeros = take(2);
  if (gather) out.tokens = take(pairs);
  if (saved != nullptr) out.sorted = take(pairs);
  LaunchOrder(call.ids, call.placement, 1, call.layer, out);
  const Order order{out.short_order, true, call.num_rows};
  ExpertsCall experts = call.experts;
  if (!gather) {
    experts.rows = at::empty({call.num_rows, x.size(1)}, x.options());
    SpreadRows(RowsOf(x), RowsOrNone({}), order, x.size(0), choices, x.size(1), RowsOf(experts.rows), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const ExpertsOut done = HopperForward(experts, {call.num_rows, out.ends, out.tokens, out.zeros}, saved != nullptr);
  experts.rows.reset();
  if (saved != nullptr) {
    const auto part = [&](const int32_t* from, int64_t count) {
      return numbers.narrow(0, from - numbers.const_data_ptr<int32_t>(), count);
    };
    *saved = {done.hidden,
              part(out.short_order, pairs).view(call.ids.sizes()),
              part(out.ends, experts.gate_up.size(0)),
              part(out.sorted, pairs),
              {}};
  }
  const at::Tensor weights = call.weights ? call.weights->contiguous() : at::Tensor();
  const at::Tensor sum = call.out.defined() ? call.out : at::empty(x.sizes(), x.options().dtype(call.dtype));
  SumRows(RowsOf(done.out), RowsOrNone(weights), order, x.size(0), choices, x.size(1), RowsOf(sum), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return sum;
}

}  // namespace autoep::ops::cuda

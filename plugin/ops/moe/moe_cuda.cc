// SPDX-License-Identifier: Apache-2.0
// moe in four or five launches: order, the tokens' rows to their places or not, up with the activation, down, and the weighted sum.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "plugin/ops/experts/hopper_cuda.h"
#include "plugin/ops/launch_cuda.h"
#include "plugin/ops/moe/moe.h"

namespace autoep::ops::cuda {

namespace {

// Rows are gathered by the up projection itself where copying them first would cost more than the slower loads: measured on an
// H100, where an expert's inner size is small.
bool Gathers(const MoeCall& call) {
  constexpr int64_t kSmallInner = 1024;
  return call.experts.down.size(2) <= kSmallInner;
}

}  // namespace

bool MoeRuns(const MoeCall& call) {
  const at::ScalarType type = call.experts.rows.scalar_type();
  return call.num_rows > 0 && HopperRuns(call.experts, call.num_rows) && (call.dtype == type || call.dtype == at::kFloat);
}

at::Tensor ForwardMoe(const MoeCall& call, MoeSaved* saved) {
  const at::Tensor& x = call.experts.rows;
  const c10::cuda::CUDAGuard guard(x.device());
  const at::TensorOptions ints = call.ids.options().dtype(at::kInt);
  const int64_t pairs = call.ids.numel();
  const bool gather = Gathers(call);
  const at::Tensor order = at::empty(call.ids.sizes(), ints);
  at::Tensor tokens = gather ? at::empty({pairs}, ints) : at::Tensor();
  const at::Tensor sorted = saved != nullptr ? at::empty({pairs}, ints) : at::Tensor();
  ExpertsCall experts = call.experts;
  const at::Tensor ends = at::empty({call.placement.size(0)}, ints);
  experts.offsets = ends.narrow(0, 0, experts.gate_up.size(0));
  PairsOut out{};
  out.short_order = order.mutable_data_ptr<int32_t>();
  out.tokens = gather ? tokens.mutable_data_ptr<int32_t>() : nullptr;
  out.sorted = saved != nullptr ? sorted.mutable_data_ptr<int32_t>() : nullptr;
  out.ends = ends.mutable_data_ptr<int32_t>();
  LaunchOrder(call.ids, call.placement, 1, call.layer, out);
  if (gather) {
    tokens = tokens.narrow(0, 0, call.num_rows);
  } else {
    experts.rows = at::empty({call.num_rows, x.size(1)}, x.options());
    SpreadRows(RowsOf(x), RowsOrNone({}), OrderOf(order, call.num_rows), x.size(0), call.ids.size(1), x.size(1),
               RowsOf(experts.rows), c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const ExpertsOut done = HopperForward(experts, gather ? &tokens : nullptr, saved != nullptr);
  experts.rows.reset();
  if (saved != nullptr) *saved = {done.hidden, order, experts.offsets, sorted, {}};
  const at::Tensor weights = call.weights ? call.weights->contiguous() : at::Tensor();
  const at::Tensor sum = call.out.defined() ? call.out : at::empty(x.sizes(), x.options().dtype(call.dtype));
  SumRows(RowsOf(done.out), RowsOrNone(weights), OrderOf(order, call.num_rows), x.size(0), call.ids.size(1), x.size(1), RowsOf(sum),
          c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return sum;
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// Launches dispatch's CUDA kernels on the current stream.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "plugin/ops/dispatch/dispatch.h"
#include "plugin/ops/launch_cuda.h"

namespace autoep::ops::cuda {

PairOrder OrderPairs(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string& layer) {
  const c10::cuda::CUDAGuard guard(ids.device());
  const at::TensorOptions options = ids.options();
  const int64_t experts = placement.size(0);
  PairOrder result{at::empty_like(ids), at::empty({experts}, options), at::empty({experts}, options),
                   at::empty({experts}, options.dtype(at::kInt)), std::nullopt};
  PairsOut out{};
  out.order = result.order.mutable_data_ptr<int64_t>();
  out.by_slot = result.by_slot.mutable_data_ptr<int64_t>();
  out.counts = result.counts.mutable_data_ptr<int64_t>();
  out.ends = result.ends.mutable_data_ptr<int32_t>();
  LaunchOrder(ids, placement, ep_size, layer, out);
  return result;
}

Destinations FindDestinations(const at::Tensor& order, const at::Tensor& ends, int64_t ranks) {
  const c10::cuda::CUDAGuard guard(order.device());
  Destinations found{at::empty_like(order), at::empty_like(order)};
  FindDestinations(order.const_data_ptr<int64_t>(), ends.const_data_ptr<int32_t>(), order.numel(), order.size(1), ends.size(0),
                   ranks, found.slots.mutable_data_ptr<int64_t>(), found.ranks.mutable_data_ptr<int64_t>(),
                   c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return found;
}

at::Tensor SpreadRows(const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order, int64_t num_rows,
                      at::ScalarType type) {
  at::Tensor out = at::empty({num_rows, source.size(1)}, source.options().dtype(type));
  SpreadInto(out, source, scale, order);
  return out;
}

void SpreadInto(const at::Tensor& out, const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order) {
  const c10::cuda::CUDAGuard guard(source.device());
  const at::Tensor from = source.contiguous();
  const at::Tensor positions = order.contiguous();
  const at::Tensor factors = scale ? scale->contiguous() : at::Tensor();
  SpreadRows(RowsOf(from), source.size(1), RowsOrNone(factors), OrderOf(positions, out.size(0)), order.size(0), order.size(1),
             source.size(1), RowsOf(out), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace autoep::ops::cuda

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

PairOrder OrderPairs(const at::Tensor& ids, const at::Tensor& slots) {
  const c10::cuda::CUDAGuard guard(ids.device());
  const int64_t pairs = ids.numel();
  const int64_t experts = slots.numel();
  PairOrder result{at::empty_like(ids), at::empty_like(slots), std::nullopt};
  const at::Tensor scratch = at::empty({OrderScratch(pairs, experts)}, slots.options());
  OrderPairs(ids.const_data_ptr<int64_t>(), slots.const_data_ptr<int64_t>(), pairs, experts, scratch.mutable_data_ptr<int64_t>(),
             result.order.mutable_data_ptr<int64_t>(), result.by_slot.mutable_data_ptr<int64_t>(),
             c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

at::Tensor SpreadRows(const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order,
                      at::ScalarType type) {
  const c10::cuda::CUDAGuard guard(source.device());
  const at::Tensor from = source.contiguous();
  const at::Tensor factors = Factors(scale, source.scalar_type());
  at::Tensor out = at::empty({order.numel(), source.size(1)}, source.options().dtype(type));
  SpreadRows(RowsOf(from), DataOrNull(factors), order.const_data_ptr<int64_t>(), order.numel(), order.size(1), source.size(1),
             RowsOf(out), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace autoep::ops::cuda

// SPDX-License-Identifier: Apache-2.0
// Launches combine's CUDA kernels on the current stream.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "plugin/ops/combine/combine.h"
#include "plugin/ops/launch_cuda.h"

namespace autoep::ops::cuda {

at::Tensor SumRows(const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order, at::ScalarType type) {
  at::Tensor out = at::empty({order.size(0), rows.size(1)}, rows.options().dtype(type));
  SumInto(out, rows, weights, order);
  return out;
}

void SumInto(const at::Tensor& out, const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order) {
  const c10::cuda::CUDAGuard guard(rows.device());
  const at::Tensor from = rows.contiguous();
  const at::Tensor positions = order.contiguous();
  const at::Tensor factors = weights ? weights->contiguous() : at::Tensor();
  SumRows(RowsOf(from), RowsOrNone(factors), OrderOf(positions, rows.size(0)), order.size(0), order.size(1), rows.size(1),
          RowsOf(out), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor DotRows(const at::Tensor& tokens, const at::Tensor& rows, const at::Tensor& order) {
  const c10::cuda::CUDAGuard guard(rows.device());
  const at::Tensor left = tokens.contiguous();
  const at::Tensor right = rows.contiguous();
  const at::Tensor positions = order.contiguous();
  at::Tensor out = at::empty(order.sizes(), rows.options().dtype(AccumulateType(tokens.scalar_type())));
  DotRows(RowsOf(left), RowsOf(right), OrderOf(positions, rows.size(0)), order.numel(), order.size(1), rows.size(1), out.data_ptr(),
          c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace autoep::ops::cuda

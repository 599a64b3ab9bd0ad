// SPDX-License-Identifier: Apache-2.0
// From tensors to the launch of the pairs' sort.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "plugin/ops/dispatch/fault_cuda.h"
#include "plugin/ops/launch_cuda.h"

namespace autoep::ops::cuda {

void LaunchOrder(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string& layer,
                 const PairsOut& out) {
  CheckFaults();
  const int64_t experts = placement.size(0);
  AUTOEP_CHECK(experts <= kMostExperts, layer, "there are ", experts, " experts, and the CUDA kernels take at most ", kMostExperts);
  AUTOEP_CHECK(ids.numel() <= INT32_MAX, layer, "there are ", ids.numel(), " choices, and one call takes at most ", INT32_MAX,
               ": split the tokens");
  const at::Tensor table = placement.to(ids.device()).contiguous();
  const int64_t scratch_size = OrderScratch(ids.numel(), experts);
  const at::Tensor scratch = scratch_size == 0 ? at::Tensor() : at::empty({scratch_size}, ids.options());
  const PairsIn in{ids.const_data_ptr<int64_t>(),
                   table.const_data_ptr<int64_t>(),
                   ids.numel(),
                   experts,
                   ids.size(1),
                   experts / ep_size,
                   FaultWord(),
                   LayerNumber(layer)};
  C10_CUDA_CHECK(
      OrderPairs(in, out, scratch_size == 0 ? nullptr : scratch.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()));
}

}  // namespace autoep::ops::cuda

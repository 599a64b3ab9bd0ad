// SPDX-License-Identifier: Apache-2.0
// What the ops need of a device. The ops themselves (checks, exchange, autograd) are the same for every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "plugin/ops/combine/combine.h"
#include "plugin/ops/dispatch/dispatch.h"
#include "plugin/ops/experts/experts.h"
#include "plugin/ops/moe/moe.h"

namespace autoep::ops {

struct Kernels {
  decltype(&cpu::OrderPairs) order_pairs;
  decltype(&cpu::FindDestinations) find_destinations;
  decltype(&cpu::SpreadRows) spread_rows;
  decltype(&cpu::SpreadInto) spread_into;
  decltype(&cpu::SumRows) sum_rows;
  decltype(&cpu::SumInto) sum_into;
  decltype(&cpu::DotRows) dot_rows;
  decltype(&cpu::ForwardExperts) forward_experts;
  decltype(&cpu::BackwardExperts) backward_experts;
  // Null where moe is put together from the others.
  decltype(&cuda::MoeRuns) moe_runs;
  decltype(&cuda::ForwardMoe) forward_moe;
  decltype(&cuda::BackwardMoe) backward_moe;
};

// Throws where this library was built without kernels for the device.
const Kernels& KernelsFor(const at::Device& device);

// Called by the CUDA part, where it is linked in.
void RegisterCudaKernels(const Kernels& kernels);

}  // namespace autoep::ops

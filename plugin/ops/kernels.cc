// SPDX-License-Identifier: Apache-2.0
// The kernels of each device.
#include "plugin/ops/kernels.h"

#include <c10/util/Exception.h>

namespace autoep::ops {
namespace {

constexpr Kernels kCpuKernels = {
    cpu::OrderPairs, cpu::FindDestinations, cpu::SpreadRows,      cpu::SpreadInto, cpu::SumRows, cpu::SumInto,
    cpu::DotRows,    cpu::ForwardExperts,   cpu::BackwardExperts, nullptr,         nullptr,      nullptr};

const Kernels* cuda_kernels = nullptr;

}  // namespace

const Kernels& KernelsFor(const at::Device& device) {
  if (device.is_cpu()) return kCpuKernels;
  TORCH_CHECK(device.is_cuda(), "autoep: no kernels for device ", device, ": use cpu or cuda");
  TORCH_CHECK(cuda_kernels != nullptr,
              "autoep: this libautoep.so was built without CUDA: build it where nvcc is found, or move the model to the CPU");
  return *cuda_kernels;
}

void RegisterCudaKernels(const Kernels& kernels) {
  static Kernels registered;
  registered = kernels;
  cuda_kernels = &registered;
}

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// Makes the CUDA kernels known to the ops.
#include "plugin/ops/kernels.h"

namespace autoep::ops {
namespace {

[[maybe_unused]] const bool registered = [] {
  RegisterCudaKernels({cuda::OrderPairs, cuda::FindDestinations, cuda::SpreadRows, cuda::SpreadInto, cuda::SumRows, cuda::SumInto,
                       cuda::DotRows, cuda::ForwardExperts, cuda::BackwardExperts, cuda::MoeRuns, cuda::ForwardMoe,
                       cuda::BackwardMoe});
  return true;
}();

}  // namespace
}  // namespace autoep::ops

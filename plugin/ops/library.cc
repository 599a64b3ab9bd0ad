// SPDX-License-Identifier: Apache-2.0
// Declares the ops of the `autoep` namespace, and implements record_routes.
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include "plugin/contract/schemas.h"
#include "plugin/ops/internal_schemas.h"
#include "plugin/ops/recorder.h"

namespace autoep::ops {
namespace {

at::Tensor RecordRoutes(const at::Tensor& ids, const at::Tensor& weights, std::string layer) {
  if (Recorder::Active()) {
    Recorder::Add({RecordedCall::Op::kRecordRoutes, std::move(layer), ids.detach().clone(), weights.detach().clone(), ids.numel()});
  }
  return ids.clone();
}

}  // namespace

TORCH_LIBRARY(autoep, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  for (const char* schema : {contract::kDispatch, contract::kExperts, contract::kCombine, contract::kMoe, contract::kMoeRanks,
                             contract::kRoute, contract::kRouteLinear, contract::kRecordRoutes, kDispatchBackward, kExpertsTrain,
                             kExpertsBackward, kCombineBackward, kAllToAll}) {
    library.def(schema, tags);
  }
}

TORCH_LIBRARY_IMPL(autoep, CompositeExplicitAutograd, library) { library.impl("record_routes", &RecordRoutes); }

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// The checks' sentences.
#include "plugin/ops/checks.h"

#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "plugin/contract/schemas.h"

namespace autoep::ops {

std::string LayerName(const std::string& layer) {
  const std::string path = layer.substr(0, layer.rfind('#'));
  return path.empty() ? "the root module" : "layer '" + path + "'";
}

void CheckAbi(int64_t abi, const std::string& layer) {
  AUTOEP_CHECK(abi == contract::kOpAbi, layer, "the model was written for op ABI ", abi, ", and this libautoep.so has ",
               contract::kOpAbi, ": use the library that the model was converted with, or convert the model again");
}

void CheckFloat(const at::Tensor& tensor, int64_t dims, const char* name, const std::string& layer) {
  const at::ScalarType type = tensor.scalar_type();
  AUTOEP_CHECK(type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16, layer, name, " is ", type,
               "; float64, float32, float16 and bfloat16 are supported");
  AUTOEP_CHECK(tensor.dim() == dims, layer, name, " has ", tensor.dim(), " dimensions, and ", dims, " are expected");
}

void CheckInt64(const at::Tensor& tensor, int64_t dims, const char* name, const std::string& layer) {
  AUTOEP_CHECK(tensor.scalar_type() == at::kLong, layer, name, " is ", tensor.scalar_type(), ", and int64 is expected");
  AUTOEP_CHECK(tensor.dim() == dims, layer, name, " has ", tensor.dim(), " dimensions, and ", dims, " are expected");
}

void CheckPerChoice(const std::optional<at::Tensor>& values, const at::Tensor& choices, const char* name,
                    const std::string& layer) {
  if (!values.has_value()) return;
  CheckFloat(*values, 2, name, layer);
  AUTOEP_CHECK(values->sizes() == choices.sizes(), layer, name, " is ", values->sizes(), ", and the choices are ", choices.sizes());
  AUTOEP_CHECK(values->device() == choices.device(), layer, name, " is on ", values->device(), ", and the choices on ",
               choices.device());
}

bool Watched(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->is_python_dispatch() || c10::impl::dispatch_mode_enabled();
}

at::ScalarType AccumulateType(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// What every op checks, in sentences that name the layer.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

// TORCH_CHECK whose sentence begins with the layer's name.
#define AUTOEP_CHECK(condition, layer, ...) TORCH_CHECK(condition, "autoep: ", ::autoep::ops::LayerName(layer), ": ", __VA_ARGS__)

namespace autoep::ops {

// The module path in an op's `layer` argument, which is "<module path>#<plan digest>".
std::string LayerName(const std::string& layer);

// The graph was written for this library's op ABI.
void CheckAbi(int64_t abi, const std::string& layer);

// `tensor` has `dims` dimensions and one of the dtypes fp64, fp32, fp16, bf16.
void CheckFloat(const at::Tensor& tensor, int64_t dims, const char* name, const std::string& layer);

// `tensor` is int64 with `dims` dimensions.
void CheckInt64(const at::Tensor& tensor, int64_t dims, const char* name, const std::string& layer);

// What a per-choice tensor (weights, scale) must be: float, as large as `order` or `ids`, on the same device.
void CheckPerChoice(const std::optional<at::Tensor>& values, const at::Tensor& choices, const char* name, const std::string& layer);

// A compiler's fake tensor, or one whose ops a mode looks at: neither sees what a kernel does inside.
bool Watched(const at::Tensor& tensor);

// fp64 stays; all else accumulates in fp32.
at::ScalarType AccumulateType(at::ScalarType type);

}  // namespace autoep::ops

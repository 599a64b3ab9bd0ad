// SPDX-License-Identifier: Apache-2.0
// The dtypes that expert weights may have: torch's and the safetensors names.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace autoep::contract {

struct Dtype {
  std::string_view name;  // of safetensors, and in the manifest
  c10::ScalarType type;
  int64_t bytes;  // of one element
};

inline constexpr std::array<Dtype, 4> kDtypes = {{{"F64", c10::ScalarType::Double, 8},
                                                  {"F32", c10::ScalarType::Float, 4},
                                                  {"F16", c10::ScalarType::Half, 2},
                                                  {"BF16", c10::ScalarType::BFloat16, 2}}};

constexpr std::optional<Dtype> FindDtype(std::string_view name) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.name == name) return dtype;
  }
  return std::nullopt;
}

constexpr std::optional<Dtype> FindDtype(c10::ScalarType type) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == type) return dtype;
  }
  return std::nullopt;
}

}  // namespace autoep::contract

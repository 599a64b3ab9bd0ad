// SPDX-License-Identifier: Apache-2.0
// What the safetensors reader and writer share.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "plugin/io/safetensors.h"

namespace autoep {

inline constexpr uint64_t kSafetensorsPrefix = 8;  // bytes of the header's length
inline constexpr uint64_t kSafetensorsHeaderLimit = 100'000'000;
inline constexpr char kSafetensorsMetadata[] = "__metadata__";

// The first 8 bytes of `bytes`.
inline uint64_t LittleEndian64(std::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// Bits of all elements; nullopt if the dtype is unknown or the size overflows.
std::optional<uint64_t> SafetensorsBits(const SafetensorsSpec& spec);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// What the current device is, asked of all devices once, for a question costs the host as much as part of a launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace autoep::ops::cuda {

// Whether its attribute is at least so much.
template <cudaDeviceAttr kAttribute, int kLeast>
bool DeviceHas() {
  constexpr int kMostDevices = 64;
  static const uint64_t able = [] {
    uint64_t bits = 0;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) return bits;
    for (int device = 0; device < devices && device < kMostDevices; ++device) {
      int value = 0;
      if (cudaDeviceGetAttribute(&value, kAttribute, device) != cudaSuccess) continue;
      if (value >= kLeast) bits |= uint64_t{1} << device;
    }
    return bits;
  }();
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && device < kMostDevices && (able >> device & 1) != 0;
}

}  // namespace autoep::ops::cuda

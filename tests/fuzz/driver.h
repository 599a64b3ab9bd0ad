// SPDX-License-Identifier: Apache-2.0
// Drives a libFuzzer entry point over mutants of seeds: the same ones every time, so that `bazel test` can run it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace autoep {

// The seeds themselves and `count` mutants: bits and bytes changed, numbers set to edges, pieces cut out, doubled, swapped
// between seeds. Each input lies at the end of its own allocation, so that a sanitizer sees a read beyond it.
void FuzzWithMutants(const std::vector<std::string>& seeds, int64_t count);

}  // namespace autoep

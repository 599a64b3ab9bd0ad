// SPDX-License-Identifier: Apache-2.0
// Faults that a kernel found in its data. The kernel goes on and the host is not waited for; the next call on the host throws, and
// the CUDA context lives on.
#pragma once

#include <cstdint>
#include <string>

#include "plugin/ops/rows_cuda.h"

namespace autoep::ops::cuda {

// Where kernels report to. One for the process; every device can write it.
volatile Fault* FaultWord();

// The number to report this layer by.
int64_t LayerNumber(const std::string& layer);

// Throws if a kernel has reported a fault since the last call, with the sentence of the layer where it was.
void CheckFaults();

}  // namespace autoep::ops::cuda

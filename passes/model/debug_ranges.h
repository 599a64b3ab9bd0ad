// SPDX-License-Identifier: Apache-2.0
// Where the lines of a saved TorchScript file came from in the author's source. LibTorch reads these records itself, but its
// reader is not exported.
#pragma once

#include <torch/csrc/jit/serialization/source_range_serialization.h>

#include <memory>
#include <string>

namespace autoep {

// Over the bytes of a ".debug_pkl" record, which are parsed when a range is first asked for. A record that does not parse
// gives no ranges.
std::shared_ptr<torch::jit::SourceRangeUnpickler> MakeDebugRanges(std::string record);

}  // namespace autoep

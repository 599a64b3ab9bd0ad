// SPDX-License-Identifier: Apache-2.0
// What a module weighs and which EP ops its graphs hold: the figures of inspect and of convert's before/after table.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <map>
#include <string>

namespace autoep {

// Counts of one module's own methods.
using OpCounts = std::map<std::string, int64_t>;  // "dispatch" -> 1, "route.linear" -> 1

struct ModelSummary {
  int64_t nodes = 0;       // in all methods of all modules, nested blocks included, constants excluded
  int64_t parameters = 0;  // distinct tensors
  int64_t parameter_bytes = 0;
  int64_t buffers = 0;
  int64_t buffer_bytes = 0;
  int64_t constant_bytes = 0;              // tensors that are constants of a graph, as torch.jit.freeze makes them
  std::map<std::string, OpCounts> ep_ops;  // module path -> ops of the autoep namespace; only modules that have some

  int64_t EpOpCount() const;
  int64_t TensorBytes() const { return parameter_bytes + buffer_bytes + constant_bytes; }
};

// Reads graphs and shapes, no tensor values.
ModelSummary Summarize(const torch::jit::Module& module);

}  // namespace autoep

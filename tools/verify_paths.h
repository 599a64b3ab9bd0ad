// SPDX-License-Identifier: Apache-2.0
// Attributes by dotted path.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <optional>
#include <string>
#include <utility>

namespace autoep {

// The module that holds the attribute at `path`, and the attribute's name.
std::optional<std::pair<torch::jit::Module, std::string>> AttributeAt(const torch::jit::Module& root, const std::string& path);

}  // namespace autoep

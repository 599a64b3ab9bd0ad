// SPDX-License-Identifier: Apache-2.0
// Splits the path at its last dot.
#include "tools/verify_paths.h"

#include "passes/model/modules.h"

namespace autoep {

std::optional<std::pair<torch::jit::Module, std::string>> AttributeAt(const torch::jit::Module& root, const std::string& path) {
  const size_t dot = path.rfind('.');
  const auto module = FindModule(root, dot == std::string::npos ? "" : path.substr(0, dot));
  const std::string name = path.substr(dot == std::string::npos ? 0 : dot + 1);
  if (!module || !module->hasattr(name)) return std::nullopt;
  return std::pair(*module, name);
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Scripted modules of equal structure share one type, and an edit of its graph would edit them all.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <string>

namespace autoep {

// Makes the module at `path` the only object of its type, and so each module on the way to it. Clones share all storages
// with what they replace; parents' graphs are retyped.
void Unshare(torch::jit::Module& root, const std::string& path);

}  // namespace autoep

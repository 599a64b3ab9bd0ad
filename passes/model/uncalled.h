// SPDX-License-Identifier: Apache-2.0
// Methods of submodules that nothing of a model calls: a graph that was inlined (torch._C._jit_pass_inline) does itself what its
// submodules did, and the file keeps both.
#pragma once

#include <torch/csrc/jit/api/module.h>

namespace autoep {

// Where no method of `module` calls anything, its submodules lose their methods. What `module` computes stays.
void RemoveUncalled(const torch::jit::Module& module);

}  // namespace autoep

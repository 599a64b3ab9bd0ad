// SPDX-License-Identifier: Apache-2.0
#include "passes/model/uncalled.h"

#include <torch/csrc/jit/api/function_impl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "passes/model/modules.h"

namespace autoep {

namespace {

bool CallsNothing(const torch::jit::Module& module) {
  const auto methods = module.get_methods();
  return std::all_of(methods.begin(), methods.end(), [](const torch::jit::Method& method) {
    return Callees(torch::jit::toGraphFunction(method.function())).empty();
  });
}

}  // namespace

void RemoveUncalled(const torch::jit::Module& module) {
  if (!CallsNothing(module)) return;
  const ObjectIndex index(module);
  for (const c10::ClassTypePtr& type : index.types()) {
    if (type == module.type()) continue;
    std::vector<std::string> names;
    for (const torch::jit::Function* method : type->methods()) names.push_back(method->name());
    for (const std::string& name : names) type->unsafeRemoveMethod(name);
  }
}

}  // namespace autoep

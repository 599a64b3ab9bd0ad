// SPDX-License-Identifier: Apache-2.0
// What holds of every model between passes. LibTorch checks most of it only when it loads the file: a model that breaks it
// saves without a word.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <set>
#include <string>

#include "plugin/io/status.h"

namespace autoep {

// kBug, saying what is broken and where: lint of each graph, a schema for each node, an attribute for each GetAttr and SetAttr,
// a method for each CallMethod, in every function that can be reached; for each object as many slots as its type has attributes,
// each of the attribute's type; a reader for each attribute named "autoep_...".
Status CheckInvariants(const torch::jit::Module& module);

// The signatures of the module's own methods except `internal` ones (c10::Function), to compare before and after.
std::string Signatures(const torch::jit::Module& module, const std::set<const void*>& internal);

// All graphs, types and attributes as text: equal texts mean that nothing changed but tensor values.
std::string PrintModel(const torch::jit::Module& module);

}  // namespace autoep

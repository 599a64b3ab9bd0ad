// SPDX-License-Identifier: Apache-2.0
// What holds of every model between passes. LibTorch checks most of it only when it loads the file: a model that breaks it
// saves without a word.
#pragma once

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "plugin/io/status.h"

namespace autoep {

// Numbers for the types with their attributes and methods, and for each function that can be reached. Equal numbers mean that
// nothing changed but types of values and lists of constants.
struct Fingerprint {
  uint64_t types = 0;
  std::unordered_map<const torch::jit::GraphFunction*, uint64_t> functions;
  std::vector<torch::jit::GraphFunction*> order;                     // the same functions, as they were met
  std::set<const void*> called;                                      // those of them that a graph calls
  std::set<std::pair<const c10::ClassType*, std::string>> own_uses;  // attributes named "autoep_..." that a graph reads or writes
  bool operator==(const Fingerprint&) const = default;
};
Fingerprint TakeFingerprint(const ObjectIndex& index);

// kBug, saying what is broken and where: lint of each graph, a schema for each node, an attribute for each GetAttr and SetAttr,
// a method for each CallMethod, in every function that can be reached; for each object as many slots as its type has attributes,
// each of the attribute's type; a reader for each attribute named "autoep_...", but the group's name. `now` is of the model as it
// is; where `before` held, graphs are linted only if they changed, and their nodes checked only if they or the types did.
Status CheckInvariants(const ObjectIndex& index, const Fingerprint& now, const Fingerprint* before = nullptr);

// The signatures of the module's own methods except `internal` ones (c10::Function), to compare before and after.
std::string Signatures(const torch::jit::Module& module, const std::set<const void*>& internal);

// All graphs, types and attributes as text, for people.
std::string PrintModel(const torch::jit::Module& module);

}  // namespace autoep

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

#include "plugin/io/status.h"

namespace autoep {

// Numbers for the types and for each function that can be reached. Equal numbers mean that nothing changed but types of values
// and lists of constants.
struct Fingerprint {
  uint64_t types = 0;
  std::unordered_map<const torch::jit::GraphFunction*, uint64_t> functions;
  bool operator==(const Fingerprint&) const = default;
};
Fingerprint TakeFingerprint(const torch::jit::Module& module);

// kBug, saying what is broken and where: lint of each graph, a schema for each node, an attribute for each GetAttr and SetAttr,
// a method for each CallMethod, in every function that can be reached; for each object as many slots as its type has attributes,
// each of the attribute's type; a reader for each attribute named "autoep_...", but the
// group's name. Graphs are linted only where they differ between
// `before` and `now`, if these are given.
Status CheckInvariants(const torch::jit::Module& module, const Fingerprint* before = nullptr, const Fingerprint* now = nullptr);

// The signatures of the module's own methods except `internal` ones (c10::Function), to compare before and after.
std::string Signatures(const torch::jit::Module& module, const std::set<const void*>& internal);

// All graphs, types and attributes as text, for people.
std::string PrintModel(const torch::jit::Module& module);

}  // namespace autoep

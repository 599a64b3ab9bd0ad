// SPDX-License-Identifier: Apache-2.0
// The objects, types and functions of a module: who exists, who shares a type, who calls whom.
#pragma once

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace autoep {

// The module at a dotted path below `root`; "" is `root`.
std::optional<torch::jit::Module> FindModule(const torch::jit::Module& root, const std::string& path);

// Every object that `root` holds, itself included, in attribute order, each once; those in lists, tuples and dicts too.
class ObjectIndex {
 public:
  explicit ObjectIndex(const torch::jit::Module& root);

  const std::vector<torch::jit::ObjectPtr>& objects() const { return objects_; }
  const std::vector<torch::jit::ObjectPtr>& OfType(const c10::ClassType* type) const { return by_type_.at(type); }
  const std::vector<c10::ClassTypePtr>& types() const { return types_; }  // in the order in which they were met

 private:
  void Visit(const at::IValue& value);

  std::unordered_set<const void*> seen_;
  std::vector<torch::jit::ObjectPtr> objects_;
  std::vector<c10::ClassTypePtr> types_;
  std::unordered_map<const c10::ClassType*, std::vector<torch::jit::ObjectPtr>> by_type_;
};

// All graph functions that can be reached: the methods of every type, and what they call. `see` is shown every node on the way,
// function by function, those of nested blocks included, and what it calls, or null.
using SeeNode = std::function<void(torch::jit::GraphFunction&, torch::jit::Node*, torch::jit::GraphFunction* callee)>;
std::vector<torch::jit::GraphFunction*> AllFunctions(const ObjectIndex& index, const SeeNode& see = nullptr);

// Calls `visit` for every node, those of nested blocks included. `visit` may not remove nodes.
void ForEachNode(torch::jit::Block* block, const std::function<void(torch::jit::Node*)>& visit);

// The functions that `function` calls.
std::set<torch::jit::GraphFunction*> Callees(torch::jit::GraphFunction& function);

}  // namespace autoep

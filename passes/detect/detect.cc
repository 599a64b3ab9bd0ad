// SPDX-License-Identifier: Apache-2.0
// The walk over modules, children first.
#include "passes/detect/detect.h"

#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <unordered_map>

#include "passes/detect/ir.h"
#include "passes/detect/match.h"
#include "passes/detect/names.h"
#include "passes/detect/proof_memory.h"
#include "passes/detect/router.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::GraphFunction;
using torch::jit::Module;
using torch::jit::Node;
namespace prim = c10::prim;

namespace {

class Detector {
 public:
  explicit Detector(const DetectOptions& options) : options_(options) {}

  Detection Detect(const Module& model) {
    Visited root = Visit(model, "");
    std::transform(root.unmet.begin(), root.unmet.end(), std::back_inserter(detection_.refusals), Describe);
    return std::move(detection_);
  }

 private:
  struct Visited {
    int64_t choices = 0;         // of those reached from this module's forward, how many are settled
    std::vector<Miss> unmet;     // what the others lack, seen from the lowest module that has one
  };

  // nodes that may choose experts and that running a function reaches; a callee counts at each call.
  int64_t CountChoices(GraphFunction* function) {
    const auto known = choices_.find(function);
    if (known != choices_.end()) return known->second;
    choices_[function] = 0;  // TorchScript has no recursion between methods; a cycle would count once
    return choices_[function] = CountChoices(function->graph()->block());
  }

  int64_t CountChoices(Block* block) {
    int64_t count = 0;
    for (Node* node : block->nodes()) {
      if (MayChoose(node)) ++count;
      const bool call = node->kind() == prim::CallMethod || node->kind() == prim::CallFunction;
      if (GraphFunction* callee = call ? torch::jit::tryToGraphFunction(node) : nullptr) count += CountChoices(callee);
      for (Block* inner : node->blocks()) count += CountChoices(inner);
    }
    return count;
  }

  Visited Visit(const Module& module, const std::string& path) {
    Visited visited;
    for (const auto& child : module.named_children()) {
      Visited below = Visit(child.value, path.empty() ? child.name : path + "." + child.name);
      visited.choices += below.choices;
      std::move(below.unmet.begin(), below.unmet.end(), std::back_inserter(visited.unmet));
    }
    const auto forward = module.find_method("forward");
    if (!forward) return visited;
    const int64_t reached = CountChoices(torch::jit::tryToGraphFunction(forward->function()));
    if (reached > visited.choices && MatchModule(module, path, visited)) visited.choices = reached;
    return visited;
  }

  // True if the module's own choices are settled: matched or refused.
  bool MatchModule(const Module& module, const std::string& path, Visited& visited) {
    const auto graph = module.get_method("forward").graph()->copy();
    PrepareBlockGraph(graph);
    MatchOutcome outcome = MatchBlocks(graph, module, path, &memory_);
    if (outcome.matches.empty() && outcome.refusals.empty()) {
      if (visited.unmet.empty()) visited.unmet = std::move(outcome.unmet);
      return false;
    }
    visited.unmet.clear();
    // A parent's graph shows again what modules below it have settled.
    for (BlockMatch& match : outcome.matches) {
      if (!IsFoundBelow(match.layer)) Add(module, std::move(match.layer));
    }
    for (const Miss& miss : outcome.refusals) {
      Refusal refusal = Describe(miss);
      if (!IsRefusedBelow(refusal)) detection_.refusals.push_back(std::move(refusal));
    }
    return true;
  }

  // The memory of a layer's experts, one place a source tensor.
  static std::set<const void*> Places(const MoeLayer& layer) {
    std::set<const void*> places;
    for (const ExpertTensor& tensor : layer.tensors) {
      for (const at::Tensor& source : tensor.sources) places.insert(source.const_data_ptr());
    }
    return places;
  }

  static bool IsBelow(const std::string& path, const std::string& parent) {
    return path != parent && (parent.empty() || path.starts_with(parent + "."));
  }

  bool IsFoundBelow(const MoeLayer& layer) const {
    return std::any_of(detection_.layers.begin(), detection_.layers.end(), [&](const MoeLayer& other) {
      return IsBelow(other.path, layer.path) && other.tensors[0].parts == layer.tensors[0].parts;
    });
  }

  bool IsRefusedBelow(const Refusal& refusal) const {
    return std::any_of(detection_.refusals.begin(), detection_.refusals.end(), [&](const Refusal& other) {
      return IsBelow(other.path, refusal.path) && other.predicate == refusal.predicate && other.source == refusal.source;
    });
  }

  void Add(const Module& module, MoeLayer layer) {
    const std::set<const void*> places = Places(layer);
    if (std::any_of(places.begin(), places.end(), [&](const void* place) { return places_.contains(place); })) {
      detection_.refusals.push_back({layer.path, "the experts of a block must be used by one block alone", "", "", ""});
      return;
    }
    places_.insert(places.begin(), places.end());
    if (const auto miss = NameLayer(module, options_, layer)) {
      detection_.refusals.push_back(Describe(*miss));
      return;
    }
    detection_.layers.push_back(std::move(layer));
  }

  const DetectOptions& options_;
  std::unordered_map<GraphFunction*, int64_t> choices_;
  ProofMemory memory_;
  std::set<const void*> places_;  // of the experts of all layers so far
  Detection detection_;
};

}  // namespace

Detection Detect(const Module& model, const DetectOptions& options) { return Detector(options).Detect(model); }

}  // namespace autoep

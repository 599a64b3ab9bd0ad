// SPDX-License-Identifier: Apache-2.0
// From calls to inputs, round by round: an input found in one round is what a callee's own calls pass on in the next.
#include "passes/rewrite/host_scalars.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>

namespace autoep {

using torch::jit::Block;
using torch::jit::GraphFunction;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;

namespace {

bool IsTensor(const Value* value) { return value->type()->kind() == c10::TypeKind::TensorType; }

bool SaysDevice(const Node* node) {
  return std::any_of(node->inputs().begin(), node->inputs().end(),
                     [](const Value* input) { return input->type()->kind() == c10::TypeKind::DeviceObjType; });
}

}  // namespace

HostScalars::HostScalars(const std::vector<GraphFunction*>& functions) {
  bool grown = true;
  while (grown) {
    grown = false;
    for (GraphFunction* function : functions) grown |= Visit(function->graph()->block());
  }
}

// Whether an input of some graph was found.
bool HostScalars::Visit(Block* block) {
  bool grown = false;
  for (Node* node : block->nodes()) {
    for (Block* inner : node->blocks()) grown |= Visit(inner);
    grown |= VisitCall(node);
    if (MakesScalar(node)) values_.insert(node->outputs().begin(), node->outputs().end());
  }
  return grown;
}

bool HostScalars::VisitCall(Node* node) {
  const bool function = node->kind() == prim::CallFunction;
  if (!function && node->kind() != prim::CallMethod) return false;
  GraphFunction* callee = torch::jit::tryToGraphFunction(node);
  if (callee == nullptr) return false;
  bool grown = false;
  const auto formal = callee->graph()->inputs();
  const size_t skipped = function ? 1 : 0;  // the function itself
  for (size_t i = 0; i < formal.size() && i + skipped < node->inputs().size(); ++i) {
    if (Contains(node->input(i + skipped))) grown |= values_.insert(formal[i]).second;
  }
  return grown;
}

// A size as a tensor, a constant without dimensions, or an op on such numbers alone that names no device.
bool HostScalars::MakesScalar(const Node* node) const {
  if (node->kind() == prim::NumToTensor) return true;
  if (node->kind() == prim::Constant) {
    if (!IsTensor(node->output())) return false;
    const auto constant = torch::jit::toIValue(node->output());
    return constant && constant->isTensor() && constant->toTensor().defined() && constant->toTensor().dim() == 0;
  }
  if (!node->kind().is_aten() || SaysDevice(node)) return false;
  bool any = false;
  for (const Value* input : node->inputs()) {
    if (!IsTensor(input)) continue;
    if (!Contains(input)) return false;
    any = true;
  }
  return any;
}

}  // namespace autoep

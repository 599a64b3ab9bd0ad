// SPDX-License-Identifier: Apache-2.0
// Node by node, through the JIT's operator table.
#include "passes/detect/interpreter.h"

#include <ATen/ops/full.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <utility>

namespace autoep {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Stack;
using torch::jit::Value;
namespace prim = c10::prim;

namespace {

constexpr int64_t kMostElements = int64_t{1} << 24;
constexpr int64_t kMostIterations = 1 << 16;

c10::IValue WithoutWeights(c10::IValue value) {
  if (!value.isTensor() || !value.toTensor().defined()) return value;
  const at::Tensor tensor = value.toTensor();
  // One number, seen at every place: only its sizes mean something.
  if (tensor.is_floating_point() && tensor.numel() > 1) {
    return at::full({}, 0.5, tensor.options().device(at::kCPU).requires_grad(false)).expand(tensor.sizes());
  }
  TORCH_CHECK(tensor.numel() <= kMostElements, "a table of integers too large to copy is read");
  // A copy: the model's tensors are mapped read-only, and an op may write in place.
  return tensor.to(at::kCPU, tensor.scalar_type(), false, true);
}

}  // namespace

Interpreter::Interpreter(const torch::jit::Module& self, torch::jit::Graph& graph, const Stands& stands) : stands_(stands) {
  if (!graph.inputs().empty() && graph.inputs()[0]->type()->kind() == c10::TypeKind::ClassType) {
    Set(graph.inputs()[0], self._ivalue());
  }
}

c10::IValue Interpreter::Get(const Value* value) {
  const auto at = values_.find(value);
  if (at != values_.end()) return at->second;
  auto constant = torch::jit::toIValue(value);
  TORCH_CHECK(constant, "value %", value->debugName(), " is not known");
  return WithoutWeights(*std::move(constant));
}

void Interpreter::Run(Node* node) {
  const auto stand = stands_.find(node);
  if (stand != stands_.end()) {
    if (stand->second) stand->second(*this, node);
  } else if (node->kind() == prim::If) {
    RunIf(node);
  } else if (node->kind() == prim::Loop) {
    RunLoop(node);
  } else if (node->kind() != prim::Constant) {
    RunOp(node);
  }
}

void Interpreter::RunBlock(Block* block) {
  for (Node* node : block->nodes()) Run(node);
}

void Interpreter::RunIf(Node* node) {
  Block* block = node->blocks().at(Get(node->input()).toBool() ? 0 : 1);
  RunBlock(block);
  for (size_t i = 0; i < node->outputs().size(); ++i) Set(node->output(i), Get(block->outputs()[i]));
}

void Interpreter::RunLoop(Node* node) {
  Block* body = node->blocks().at(0);
  const int64_t trips = Get(node->input(0)).toInt();
  bool go = Get(node->input(1)).toBool();
  for (size_t i = 0; i < node->outputs().size(); ++i) Set(node->output(i), Get(node->input(i + 2)));
  for (int64_t trip = 0; go && trip < trips; ++trip) {
    TORCH_CHECK(trip < kMostIterations, "the loop does not end");
    Set(body->inputs()[0], trip);
    for (size_t i = 0; i < node->outputs().size(); ++i) Set(body->inputs()[i + 1], Get(node->output(i)));
    RunBlock(body);
    go = Get(body->outputs()[0]).toBool();
    for (size_t i = 0; i < node->outputs().size(); ++i) Set(node->output(i), Get(body->outputs()[i + 1]));
  }
}

void Interpreter::RunOp(Node* node) {
  Stack stack;
  for (const Value* input : node->inputs()) stack.push_back(Get(input));
  const auto kind = node->kind();
  const Stack inputs = watch_ ? stack : Stack();
  if (kind == prim::GetAttr) {
    const c10::IValue object = std::exchange(stack.back(), c10::IValue());
    stack.back() = WithoutWeights(object.toObject()->getAttr(node->s(c10::attr::name)));
  } else if (kind == prim::ListConstruct) {
    c10::impl::GenericList list(node->output()->type()->expectRef<c10::ListType>().getElementType());
    for (c10::IValue& element : stack) list.push_back(std::move(element));
    stack = {std::move(list)};
  } else if (kind == prim::TupleConstruct) {
    stack = {c10::ivalue::Tuple::create(std::exchange(stack, {}))};
  } else if (kind == prim::ListUnpack || kind == prim::TupleUnpack) {
    const c10::IValue packed = std::exchange(stack.back(), c10::IValue());
    stack.clear();
    if (packed.isTuple()) stack = Stack(packed.toTupleRef().elements());
    if (packed.isList()) stack = packed.toListRef().vec();
  } else if (kind != prim::unchecked_cast && kind != prim::unchecked_unwrap_optional) {
    TORCH_CHECK(node->maybeOperator(), "no kernel for ", kind.toQualString());
    node->getOperation()(stack);
  }
  TORCH_CHECK(stack.size() == node->outputs().size(), "unexpected results of ", kind.toQualString());
  if (watch_) watch_(node, inputs, stack);
  for (size_t i = 0; i < stack.size(); ++i) Set(node->output(i), std::move(stack[i]));
}

}  // namespace autoep

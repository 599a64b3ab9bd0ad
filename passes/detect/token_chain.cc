// SPDX-License-Identifier: Apache-2.0
// Upwards by the first input.
#include "passes/detect/token_chain.h"

#include <set>

#include "passes/detect/guards.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// Ops that keep or pick token rows: the first input holds the tokens.
bool KeepsRows(const Node* node) {
  switch (node->kind()) {
    case aten::to:
    case aten::view:
    case aten::reshape:
    case aten::flatten:
    case aten::unsqueeze:
    case aten::squeeze:
    case aten::expand:
    case aten::repeat:
    case aten::repeat_interleave:
    case aten::contiguous:
    case aten::detach:
    case aten::clone:
    case aten::index:
    case aten::index_select:
    case aten::masked_select:
    case aten::slice:
    case aten::narrow:
    case aten::select:
    case aten::split:
    case aten::chunk:
    case aten::unbind:
    case prim::ListUnpack:
      return true;
    default:
      static const std::set<c10::Symbol> others = {aten::view_as, aten::reshape_as, aten::type_as,
                                                   aten::gather,  aten::alias,      c10::Symbol::fromQualString("aten::expand_as")};
      return others.contains(node->kind()) || MatchGuard(node);
  }
}

// What a node takes rows from, or null. A parameter holds no rows: a norm may stand behind the gate too.
Value* RowsOf(Node* node, const GraphFlow& flow, const Router& router) {
  if (KeepsRows(node)) return node->input(0);
  const int gate = flow.StepOf(router.gate);
  if (flow.StepOf(node) < gate) return nullptr;
  std::vector<Value*> factors;
  if (node->kind() == aten::mul || node->kind() == aten::mul_) factors = {node->input(0), node->input(1)};
  if (node->kind() == aten::einsum) factors = ListElements(node->input(1));
  for (Value* factor : factors) {
    const Value* made = RootOfRows(factor);
    const bool constant = made->node()->kind() == prim::GetAttr || made->node()->kind() == prim::Constant;
    if (!constant && flow.StepOf(made) < gate) return factor;
  }
  return nullptr;
}

}  // namespace

Value* RootOfRows(Value* rows) {
  while (KeepsRows(rows->node())) rows = rows->node()->input(0);
  return rows;
}

std::vector<Value*> FindTokenChain(const ExpertFfn& expert, const torch::jit::Graph& graph, const GraphFlow& flow,
                                   const Router& router) {
  std::vector<Value*> chain;
  Value* value = expert.rows;
  while (true) {
    const Node* node = value->node();
    const bool top = node->kind() == prim::Param ? flow.StepOf(value) < 0 : node->owningBlock() == graph.block();
    if (top) chain.push_back(value);
    Value* rows = RowsOf(value->node(), flow, router);
    if (!rows) break;
    value = rows;
  }
  if (!chain.empty() && chain.back() != value) chain.clear();
  return chain;
}

}  // namespace autoep

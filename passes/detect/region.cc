// SPDX-License-Identifier: Apache-2.0
// Closures over steps, and the list of ops that may stand in a region.
#include "passes/detect/region.h"

#include <ATen/core/function_schema.h>

#include <algorithm>
#include <map>
#include <string>
#include <string_view>

#include "passes/detect/guards.h"
#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// Sorted by kind: control flow and lists; sizes and numbers; tests; index arithmetic; making; moving; combining.
constexpr std::string_view kExplained[] = {
    "prim::ListConstruct", "prim::ListUnpack", "prim::TupleConstruct", "prim::TupleUnpack", "prim::TupleIndex", "prim::If",
    "prim::Loop", "prim::NumToTensor", "prim::unchecked_cast", "prim::dtype", "prim::device", "prim::layout", "prim::min",
    "prim::max", "aten::append", "aten::__getitem__", "aten::list",
    "aten::size", "aten::sym_size", "aten::numel", "aten::len", "aten::dim", "aten::Int", "aten::Bool", "aten::IntImplicit",
    "aten::ScalarImplicit", "aten::item", "aten::is_nonzero", "aten::floordiv", "aten::__range_length", "aten::__derive_index",
    "aten::tensor", "aten::scalar_tensor", "aten::neg",
    "aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge", "aten::any", "aten::all", "aten::__and__",
    "aten::__or__", "aten::__not__", "aten::__is__", "aten::__isnot__", "aten::logical_and", "aten::logical_or",
    "aten::logical_not", "aten::bitwise_and", "aten::bitwise_or", "aten::bitwise_not", "aten::isin",
    "aten::one_hot", "aten::nonzero", "aten::nonzero_numpy", "aten::argwhere", "aten::where", "aten::sort", "aten::argsort",
    "aten::floor_divide", "aten::remainder", "aten::histc", "aten::bincount", "aten::cumsum", "aten::searchsorted",
    "aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::ones", "aten::ones_like", "aten::new_ones", "aten::full",
    "aten::full_like", "aten::new_full", "aten::empty", "aten::empty_like", "aten::new_empty", "aten::arange", "aten::zero_",
    "aten::fill_", "aten::copy_",
    "aten::view", "aten::view_as", "aten::reshape", "aten::reshape_as", "aten::flatten", "aten::unflatten", "aten::unsqueeze",
    "aten::squeeze", "aten::expand", "aten::expand_as", "aten::repeat", "aten::repeat_interleave", "aten::permute",
    "aten::transpose", "aten::t", "aten::numpy_T", "aten::movedim", "aten::swapaxes", "aten::select", "aten::slice",
    "aten::narrow", "aten::chunk", "aten::split", "aten::unbind", "aten::cat", "aten::concat", "aten::stack", "aten::clone",
    "aten::contiguous", "aten::detach", "aten::alias", "aten::to", "aten::type_as", "aten::index", "aten::index_select",
    "aten::gather", "aten::take_along_dim", "aten::masked_select", "aten::index_put", "aten::index_put_", "aten::index_copy",
    "aten::index_copy_", "aten::index_add", "aten::index_add_", "aten::index_fill", "aten::index_fill_", "aten::scatter",
    "aten::scatter_", "aten::scatter_add", "aten::scatter_add_", "aten::scatter_reduce", "aten::scatter_reduce_",
    "aten::masked_fill", "aten::masked_fill_", "aten::masked_scatter",
    "aten::add", "aten::add_", "aten::sub", "aten::sub_", "aten::rsub", "aten::mul", "aten::mul_", "aten::sum", "aten::addcmul",
    "aten::addcmul_", "aten::bmm", "aten::mm", "aten::matmul", "aten::einsum",
};

const std::unordered_set<c10::Symbol>& ExplainedKinds() {
  static const auto* kinds = [] {
    auto* set = new std::unordered_set<c10::Symbol>();
    for (const std::string_view name : kExplained) set->insert(c10::Symbol::fromQualString(std::string(name)));
    return set;
  }();
  return *kinds;
}

bool IsTensor(const Value* value) { return value->type()->kind() == c10::TypeKind::TensorType; }

// Constants and attributes: numbers, modules, and tensors of integers. A float tensor would be a weight nobody explained.
bool IsExplainedSource(const Node* node) {
  if (node->kind() == prim::GetAttr) return !IsTensor(node->output());
  if (!IsTensor(node->output())) return true;
  const at::Tensor tensor = torch::jit::toIValue(node->output())->toTensor();
  return !tensor.defined() || tensor.numel() <= 1 || !tensor.is_floating_point();
}

bool Writes(const torch::jit::Use& use) {
  const c10::FunctionSchema* schema = use.user->maybeSchema();
  if (!schema || use.offset >= schema->arguments().size()) return false;
  const c10::AliasInfo* alias = schema->arguments()[use.offset].alias_info();
  return alias && alias->isWrite();
}

// True if a node that is not the unit's own writes in place to what the unit computes, or to its rows while it reads them.
bool IsDisturbed(const ExpertFfn& unit, const GraphFlow& flow) {
  const auto own = [&](const Node* node) { return std::find(unit.nodes.begin(), unit.nodes.end(), node) != unit.nodes.end(); };
  const auto written = [&](const Value* value, bool while_running) {
    const GraphFlow::Root root = flow.RootOf(value);
    if (flow.Writers(root).empty()) return false;
    const auto reads = [&](const Node* node) {
      return std::any_of(node->inputs().begin(), node->inputs().end(), [&](const Value* input) { return flow.RootOf(input) == root; });
    };
    for (const Value* alias : flow.Values(root)) {
      for (const auto& use : alias->uses()) {
        if (!Writes(use) || own(use.user)) continue;
        if (!while_running) return true;
        const bool between = use.user->isBefore(unit.output->node()) &&
                             std::any_of(unit.nodes.begin(), unit.nodes.end(),
                                         [&](const Node* node) { return reads(node) && node->isBefore(use.user); });
        if (between) return true;
      }
    }
    return false;
  };
  for (const Node* node : unit.nodes) {
    for (const Value* output : node->outputs()) {
      if (output != unit.output && written(output, false)) return true;
    }
  }
  // Each matrix reads its index anew.
  const Value* index = unit.down.weight.selected;
  if (index && written(IndexTensor(index), false)) return true;
  return written(unit.rows, true);
}

void CollectUnits(Block* block, const GraphFlow& flow, const WeightFinder& weights, ExpertUnits& found) {
  for (Node* node : block->nodes()) {
    for (Block* inner : node->blocks()) CollectUnits(inner, flow, weights, found);
    if (node->outputs().size() != 1 || !IsTensor(node->output())) continue;
    auto unit = MatchFfn(node->output(), weights);
    if (!unit || IsDisturbed(*unit, flow)) continue;
    // With a bias added behind the product, the longer reading, which comes later, is the unit.
    const int index = static_cast<int>(found.units.size());
    for (const Node* inner : unit->nodes) {
      const auto shorter = found.by_output.find(inner);
      if (shorter != found.by_output.end()) found.by_output.erase(shorter);
    }
    found.by_output[node] = index;
    found.units.push_back(*std::move(unit));
  }
}

}  // namespace

namespace {

std::string WeightNames(const ExpertFfn& unit) {
  std::string names;
  const auto add = [&](const Projection& projection) {
    names += "\n" + projection.weight.name;
    if (projection.weight.at) names += "@" + std::to_string(*projection.weight.at);
    if (projection.bias) names += "+" + projection.bias->name;
  };
  if (unit.gate) add(unit.gate->projection);
  add(unit.up.projection);
  add(unit.down);
  return names;
}

}  // namespace

ExpertUnits FindUnits(Graph& graph, const GraphFlow& flow, const WeightFinder& weights) {
  ExpertUnits found;
  CollectUnits(graph.block(), flow, weights, found);
  // Of several readings that end in one another, only the longest is in by_output.
  std::set<int> live;
  for (const auto& [node, index] : found.by_output) live.insert(index);
  std::map<std::string, int> by_weights;
  found.expert.assign(found.units.size(), -1);
  for (const int i : live) found.expert[i] = by_weights.emplace(WeightNames(found.units[i]), i).first->second;
  for (const auto& [node, index] : found.by_output) {
    const ExpertFfn& unit = found.units[index];
    found.inner.insert(unit.nodes.begin(), unit.nodes.end());
    found.by_step[flow.StepOf(node)].push_back(index);
  }
  for (auto& [step, indices] : found.by_step) std::sort(indices.begin(), indices.end());
  return found;
}

bool IsExplained(const Node* node, const ExpertUnits& units) {
  if (units.inner.contains(node)) return true;
  if (node->kind() == prim::Constant || node->kind() == prim::GetAttr) return IsExplainedSource(node);
  // Division by a value is not linear; with a rounding mode it is index arithmetic.
  if (node->kind() == aten::div) return node->inputs().size() == 3 && !IsNone(node->input(2));
  if (!ExplainedKinds().contains(node->kind())) return MatchGuard(node).has_value();
  for (const Block* block : node->blocks()) {
    for (const Node* inner : block->nodes()) {
      if (!IsExplained(inner, units)) return false;
    }
  }
  return true;
}

bool TakesShapeOnly(const Node* node) {
  static const std::unordered_set<c10::Symbol> kinds = {
      aten::size,       aten::dim,       prim::dtype,     prim::device,   aten::zeros_like, aten::ones_like,
      aten::empty_like, aten::full_like, aten::new_zeros, aten::new_ones, aten::new_full,   aten::new_empty,
  };
  return kinds.contains(node->kind());
}

std::vector<Value*> StepReads(int step, const GraphFlow& flow, const ExpertUnits& units) {
  const auto unit = units.by_output.find(flow.NodeAt(step));
  if (unit == units.by_output.end()) return flow.Reads(step);
  const ExpertFfn& ffn = units.units[unit->second];
  std::vector<Value*> reads = ffn.Choices();
  reads.insert(reads.begin(), ffn.rows);
  return reads;
}

int DefinitionStep(const Value* value, int at, const GraphFlow& flow) {
  return std::max(flow.StepOf(value), flow.LastWriterBefore(flow.RootOf(value), at));
}

namespace {

bool IsSource(const Node* node) {
  return node->kind() == prim::Constant || node->kind() == prim::GetAttr || node->kind() == prim::ListConstruct;
}

class ClosureWalk {
 public:
  ClosureWalk(const GraphFlow& flow, const ExpertUnits& units, const ClosureOptions& options)
      : flow_(flow), units_(units), options_(options) {}

  void Need(const Value* value, int at) {
    if (options_.boundary.contains(value)) return;
    const int made = flow_.StepOf(value);
    // The module itself may be read; another graph input belongs to nobody here.
    if (made < 0 && value->type()->kind() != c10::TypeKind::ClassType) Meet(value->node());
    if (made >= 0) queue_.push_back(made);
    const GraphFlow::Root root = flow_.RootOf(value);
    PushWriter(root, made, at);
    for (const GraphFlow::Root element : flow_.Elements(root)) PushWriter(element, made, at);
  }

  Closure Finish() {
    while (!queue_.empty() && !closure_.foreign) {
      const int step = queue_.back();
      queue_.pop_back();
      if (!closure_.steps.insert(step).second) continue;
      Node* node = flow_.NodeAt(step);
      const bool early = step < options_.first_step && !IsSource(node);
      if (early || (options_.explained_only && !IsExplained(node, units_))) Meet(node);
      for (const Value* read : StepReads(step, flow_, units_)) {
        const bool given = options_.shapes.contains(read) && !options_.boundary.contains(read);
        if (given && TakesShapeOnly(node) && node->input(0) == read) {
          closure_.shapes.insert(read);
        } else {
          Need(read, step);
        }
      }
    }
    return std::move(closure_);
  }

 private:
  // What was written before a value was made from others is in those.
  void PushWriter(GraphFlow::Root root, int made, int at) {
    const int writer = flow_.LastWriterBefore(root, at);
    if (writer > made) queue_.push_back(writer);
  }
  void Meet(const Node* node) {
    if (!closure_.foreign) closure_.foreign = const_cast<Node*>(node);
  }

  const GraphFlow& flow_;
  const ExpertUnits& units_;
  const ClosureOptions& options_;
  std::vector<int> queue_;
  Closure closure_;
};

}  // namespace

Closure FindClosure(Value* value, int at, const GraphFlow& flow, const ExpertUnits& units, const ClosureOptions& options) {
  ClosureWalk walk(flow, units, options);
  walk.Need(value, at + 1);
  return walk.Finish();
}

}  // namespace autoep

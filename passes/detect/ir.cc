// SPDX-License-Identifier: Apache-2.0
// Reading TorchScript IR: constants, no-op casts, and where a node came from.
#include "passes/detect/ir.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <torch/csrc/jit/frontend/source_range.h>

#include <sstream>
#include <tuple>
#include <utility>

#include "plugin/io/text.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

std::optional<int64_t> ConstInt(const Value* value) {
  if (value->node()->kind() == prim::NumToTensor) return ConstInt(value->node()->input());
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isInt() ? std::optional<int64_t>(constant->toInt()) : std::nullopt;
}

std::optional<double> ConstNumber(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  if (!constant) return std::nullopt;
  if (constant->isInt()) return static_cast<double>(constant->toInt());
  if (constant->isDouble()) return constant->toDouble();
  if (constant->isTensor() && constant->toTensor().defined() && constant->toTensor().numel() == 1) {
    return constant->toTensor().item().toDouble();
  }
  return std::nullopt;
}

std::optional<bool> ConstBool(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isBool() ? std::optional<bool>(constant->toBool()) : std::nullopt;
}

std::optional<std::string> ConstString(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  if (!constant || !constant->isString()) return std::nullopt;
  return constant->toStringRef();
}

std::optional<std::vector<int64_t>> ConstInts(const Value* value) {
  if (const auto constant = torch::jit::toIValue(value)) {
    if (constant->isInt()) return std::vector<int64_t>{constant->toInt()};
    if (constant->isIntList()) return constant->toIntVector();
    return std::nullopt;
  }
  if (!IsKind(value, prim::ListConstruct)) return std::nullopt;
  std::vector<int64_t> ints;
  for (const Value* input : value->node()->inputs()) {
    const auto element = ConstInt(input);
    if (!element) return std::nullopt;
    ints.push_back(*element);
  }
  return ints;
}

bool IsNone(const Value* value) { return value->mustBeNone(); }

std::vector<Value*> ListElements(const Value* value) {
  if (!IsKind(value, prim::ListConstruct)) return {};
  const auto inputs = const_cast<Value*>(value)->node()->inputs();
  return {inputs.begin(), inputs.end()};
}

std::optional<Stored> FindStored(const torch::jit::Module& self, const Value* value) {
  std::vector<const Node*> chain;
  for (; IsKind(value, prim::GetAttr); value = value->node()->input()) chain.push_back(value->node());
  const auto inputs = value->node()->owningGraph()->inputs();
  if (chain.empty() || inputs.empty() || value != inputs[0]) return std::nullopt;
  Stored stored{"", self._ivalue()};
  for (auto node = chain.rbegin(); node != chain.rend(); ++node) {
    if (!stored.value.isObject()) return std::nullopt;
    const std::string& name = (*node)->s(c10::attr::name);
    const c10::IValue holder = stored.value;
    stored.value = holder.toObjectRef().getAttr(name);
    stored.name += (stored.name.empty() ? "" : ".") + name;
  }
  return stored;
}

const Value* IndexTensor(const Value* value) {
  const auto reads = [](c10::Symbol kind) {
    return kind == aten::Int || kind == aten::IntImplicit || kind == aten::ScalarImplicit || kind == aten::item;
  };
  while (reads(value->node()->kind())) value = value->node()->input(0);
  return value;
}

std::optional<Size> FindSize(const Value* number) {
  const Node* node = IndexTensor(number)->node();
  if (node->kind() == prim::NumToTensor) node = node->input()->node();
  if (node->kind() != aten::size || node->inputs().size() != 2) return std::nullopt;
  const auto dim = ConstInt(node->input(1));
  return dim ? std::optional(Size{node->input(0), *dim}) : std::nullopt;
}

namespace {

bool IsNoOp(const Node* node, at::ScalarType dtype) {
  if (node->kind() == aten::contiguous || node->kind() == aten::detach || node->kind() == aten::alias) return true;
  if (node->kind() == aten::dropout) return ConstBool(node->input(2)) == false;
  // to(Tensor, ScalarType, ...): the copy flag makes no difference where nothing is mutated.
  return node->kind() == aten::to && ConstInt(node->input(1)) == static_cast<int64_t>(dtype);
}

}  // namespace

Value* StripNoOps(Value* value, at::ScalarType dtype, std::vector<Node*>* passed) {
  while (value->node()->inputs().size() > 0 && IsNoOp(value->node(), dtype)) {
    if (passed) passed->push_back(value->node());
    value = value->node()->input(0);
  }
  return value;
}

std::string NodeText(const Node* node) {
  std::ostringstream out;
  node->print(out, 0, nullptr, /*print_source_locations=*/false, /*print_attributes=*/true, /*print_scopes=*/false,
              /*print_body=*/false);
  std::string text = out.str();
  text = text.substr(0, text.find('\n'));
  return Printable(text);
}

namespace {

torch::jit::SourceRange OriginalRange(const Node* node) {
  torch::jit::SourceRange range = node->sourceRange();
  auto original = range.findSourceRangeThatGenerated();
  return original ? *std::move(original) : range;
}

std::string LineAt(const torch::jit::SourceRange& range) {
  if (!range.source()) return "";
  const std::string line = range.source()->get_line(range.source()->lineno_for_offset(range.start())).str();
  const size_t begin = line.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : Printable(line.substr(begin, line.find_last_not_of(" \t\r\n") + 1 - begin));
}

// What the tracer writes down in place of a source: "modeling_mixtral.py(128): forward", and who called it.
bool IsCallStack(const torch::jit::SourceRange& range) {
  const auto place = range.file_line_col();
  return place && range.source()->text_str().str().starts_with(std::get<0>(*place) + "(");
}

}  // namespace

std::string SourceText(const Node* node) {
  const torch::jit::SourceRange original = OriginalRange(node);
  return LineAt(IsCallStack(original) ? node->sourceRange() : original);
}

std::string SourceLine(const Node* node) {
  const torch::jit::SourceRange range = OriginalRange(node);
  const auto place = range.file_line_col();
  if (!place) return "";
  const auto& [file, line, column] = *place;
  if (file.empty()) return "";
  return Printable(fmt::format("{}:{}", file.substr(file.find_last_of('/') + 1), line));
}

Miss Refuse(const std::string& path, std::string predicate, const Node* node) {
  return {path, std::move(predicate), node, node ? node->owningGraph()->shared_from_this() : nullptr};
}

Refusal Describe(const Miss& miss) {
  if (!miss.node) return {miss.path, miss.predicate, "", "", ""};
  return {miss.path, miss.predicate, NodeText(miss.node), SourceLine(miss.node), SourceText(miss.node)};
}

}  // namespace autoep

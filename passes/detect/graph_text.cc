// SPDX-License-Identifier: Apache-2.0
// One walk over the nodes; every value gets the number of its place.
#include "passes/detect/graph_text.h"

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <iterator>
#include <sstream>
#include <unordered_map>

namespace autoep {

using torch::jit::AttributeKind;
using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;
namespace prim = c10::prim;

namespace {

constexpr size_t kLargest = 4096;  // bytes of a tensor whose numbers are written down

class Writer {
 public:
  explicit Writer(const torch::jit::Module& self) : self_(self) {}

  std::string Write(const torch::jit::Graph& graph) {
    for (const Value* input : graph.inputs()) Define(input);
    if (!graph.inputs().empty() && graph.inputs()[0]->type()->kind() == c10::TypeKind::ClassType) {
      objects_[graph.inputs()[0]] = self_._ivalue();
    }
    AddBlock(graph.block());
    return std::move(text_);
  }

 private:
  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  // Lengths keep one piece from being read as two.
  void AddString(const std::string& text) { Add("{}:{} ", text.size(), text); }

  void Define(const Value* value) {
    numbers_.emplace(value, numbers_.size());
    const auto kind = value->type()->kind();
    if (kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ClassType) {
      Add("{} ", static_cast<int>(kind));
    } else {
      AddString(value->type()->str());
    }
  }

  void AddTensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return Add("undefined ");
    Add("{} {} [{}] ", static_cast<int>(tensor.scalar_type()), tensor.device().str(), fmt::join(tensor.sizes(), ","));
    if (tensor.is_floating_point() && tensor.numel() > 1) return;
    if (!tensor.device().is_cpu() || tensor.nbytes() > kLargest) return AddUnknown();
    const at::Tensor dense = tensor.contiguous();
    text_.append(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  }

  void AddValue(const c10::IValue& value) {
    if (value.isTensor()) return AddTensor(value.toTensor());
    const bool plain = value.isNone() || value.isBool() || value.isInt() || value.isDouble() || value.isString() ||
                       value.isIntList() || value.isDoubleList() || value.isBoolList() || value.isDevice();
    if (!plain) return AddUnknown();
    std::ostringstream out;
    out.precision(17);
    out << value;
    Add("{} ", value.tagKind());
    AddString(out.str());
  }

  // No two are equal.
  void AddUnknown() {
    static std::atomic<int64_t> next = 0;
    Add("?{} ", next++);
  }

  void AddAttribute(const Node* node, c10::Symbol name) {
    Add("{} ", static_cast<c10::unique_t>(name));
    switch (node->kindOf(name)) {
      case AttributeKind::i:
        return Add("{} ", node->i(name));
      case AttributeKind::f:
        return Add("{} ", node->f(name));
      case AttributeKind::s:
        return AddString(node->s(name));
      case AttributeKind::t:
        return AddTensor(node->t(name));
      case AttributeKind::is:
        return Add("[{}] ", fmt::join(node->is(name), ","));
      case AttributeKind::ival:
        return AddValue(node->ival(name));
      default:
        return AddUnknown();
    }
  }

  void AddAttributeOf(const Node* get) {
    const auto object = objects_.find(get->input());
    const std::string& name = get->s(c10::attr::name);
    if (object == objects_.end() || !object->second.isObject() || !object->second.toObject()->type()->hasAttribute(name))
      return AddUnknown();
    const c10::IValue value = object->second.toObject()->getAttr(name);
    if (!value.isObject()) return AddValue(value);
    objects_[get->output()] = value;
  }

  void AddNode(const Node* node) {
    Add("\n{} ", static_cast<c10::unique_t>(node->kind()));
    for (const Value* input : node->inputs()) Add("{},", numbers_.at(input));
    for (const c10::Symbol name : node->attributeNames()) AddAttribute(node, name);
    Add("-> ");
    for (const Value* output : node->outputs()) Define(output);
    if (node->kind() == prim::GetAttr) AddAttributeOf(node);
    for (const Block* block : node->blocks()) AddBlock(block);
  }

  void AddBlock(const Block* block) {
    Add("{{");
    for (const Value* input : block->inputs()) {
      if (!numbers_.contains(input)) Define(input);
    }
    for (const Node* node : block->nodes()) AddNode(node);
    for (const Value* output : block->outputs()) Add("{},", numbers_.at(output));
    Add("}}");
  }

  const torch::jit::Module& self_;
  std::string text_;
  std::unordered_map<const Value*, size_t> numbers_;
  std::unordered_map<const Value*, c10::IValue> objects_;  // modules
};

}  // namespace

std::string GraphText(const torch::jit::Graph& graph, const torch::jit::Module& self) { return Writer(self).Write(graph); }

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Counting nodes, tensors and EP ops.
#include "tools/model_summary.h"

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

#include <set>
#include <string_view>

namespace autoep {
namespace {

constexpr std::string_view kNamespace = "autoep::";

// "route.linear" for the overload linear of autoep::route.
std::string OpName(const torch::jit::Node& node) {
  const std::string name = std::string(node.kind().toQualString()).substr(kNamespace.size());
  const auto* schema = node.maybeSchema();
  return schema && !schema->overload_name().empty() ? name + "." + schema->overload_name() : name;
}

class Summarizer {
 public:
  void Visit(const torch::jit::Module& module, const std::string& path) {
    OpCounts ops;
    for (const torch::jit::Method& method : module.get_methods()) {
      VisitBlock(torch::jit::toGraphFunction(method.function()).graph()->block(), ops);
    }
    if (!ops.empty()) summary_.ep_ops.emplace(path, std::move(ops));
    for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
      AddTensor(parameter.value, summary_.parameters, summary_.parameter_bytes);
    }
    for (const auto& buffer : module.named_buffers(/*recurse=*/false)) {
      AddTensor(buffer.value, summary_.buffers, summary_.buffer_bytes);
    }
    for (const auto& child : module.named_children()) Visit(child.value, path.empty() ? child.name : path + "." + child.name);
  }

  ModelSummary Take() { return std::move(summary_); }

 private:
  void VisitBlock(const torch::jit::Block* block, OpCounts& ops) {
    for (const torch::jit::Node* node : block->nodes()) {
      if (node->kind() == c10::prim::Constant) {
        VisitConstant(*node);
        continue;
      }
      ++summary_.nodes;
      if (const std::string_view kind = node->kind().toQualString(); kind.starts_with(kNamespace)) ++ops[OpName(*node)];
      for (const torch::jit::Block* nested : node->blocks()) VisitBlock(nested, ops);
    }
  }

  void VisitConstant(const torch::jit::Node& node) {
    if (!node.hasAttribute(c10::attr::value) || node.kindOf(c10::attr::value) != torch::jit::AttributeKind::t) return;
    int64_t count = 0;
    AddTensor(node.t(c10::attr::value), count, summary_.constant_bytes);
  }

  void AddTensor(const at::Tensor& tensor, int64_t& count, int64_t& bytes) {
    if (!tensor.defined() || (tensor.numel() > 0 && !seen_.insert(tensor.const_data_ptr()).second)) return;
    ++count;
    bytes += static_cast<int64_t>(tensor.nbytes());
  }

  ModelSummary summary_;
  std::set<const void*> seen_;
};

}  // namespace

int64_t ModelSummary::EpOpCount() const {
  int64_t count = 0;
  for (const auto& [path, ops] : ep_ops) {
    for (const auto& [name, n] : ops) count += n;
  }
  return count;
}

ModelSummary Summarize(const torch::jit::Module& module) {
  Summarizer summarizer;
  summarizer.Visit(module, "");
  return summarizer.Take();
}

}  // namespace autoep

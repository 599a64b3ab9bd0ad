// SPDX-License-Identifier: Apache-2.0
// Walks the objects, the constants and the graphs of a model for tensors.
#include "passes/model/tensors.h"

#include <fmt/format.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <set>

#include "plugin/io/checked.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

class Collector {
 public:
  void Visit(const at::IValue& value, const std::string& name) {
    if (value.isTensor()) {
      if (value.toTensor().defined()) found.push_back({name, value.toTensor()});
    } else if (value.isObject()) {
      VisitObject(value.toObject(), name);
    } else if (value.isList()) {
      VisitElements(value.toListRef(), name);
    } else if (value.isTuple()) {
      VisitElements(value.toTupleRef().elements(), name);
    } else if (value.isGenericDict()) {
      size_t index = 0;
      for (const auto& entry : value.toGenericDict()) {
        Visit(entry.key(), fmt::format("{}.{}", name, index));
        Visit(entry.value(), fmt::format("{}.{}", name, index++));
      }
    }
  }

  std::vector<NamedTensor> found;

 private:
  void VisitObject(const c10::intrusive_ptr<c10::ivalue::Object>& object, const std::string& name) {
    if (!seen_.insert(object.get()).second) return;
    const auto type = object->type();
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      Visit(object->getSlot(i), name.empty() ? type->getAttributeName(i) : name + "." + type->getAttributeName(i));
    }
  }

  template <typename Elements>
  void VisitElements(const Elements& elements, const std::string& name) {
    size_t index = 0;
    for (const at::IValue& element : elements) Visit(element, fmt::format("{}.{}", name, index++));
  }

  std::set<const void*> seen_;
};

// A tensor, or what may have tensors in it.
bool MayHoldTensor(const torch::jit::Node& node) {
  using torch::jit::AttributeKind;
  if (node.kind() != c10::prim::Constant || !node.hasAttribute(c10::attr::value)) return false;
  const AttributeKind kind = node.kindOf(c10::attr::value);
  return kind == AttributeKind::t || kind == AttributeKind::ts || kind == AttributeKind::ival;
}

void CollectConstants(const torch::jit::Block* block, Collector& collector) {
  for (const torch::jit::Node* node : block->nodes()) {
    if (MayHoldTensor(*node)) {
      if (const auto value = torch::jit::toIValue(node->output())) collector.Visit(*value, "");
    }
    for (const torch::jit::Block* inner : node->blocks()) CollectConstants(inner, collector);
  }
}

std::vector<NamedTensor> ConstantTensors(const MoeModel& model) {
  Collector collector;
  for (size_t i = 0; i < model.constants.size(); ++i) collector.Visit(model.constants[i], fmt::format("constant:{}", i));
  return std::move(collector.found);
}

// Bytes of storage that the tensor needs; nullopt if no storage can hold it.
std::optional<int64_t> NeededBytes(const at::Tensor& tensor) {
  if (tensor.storage_offset() < 0 || !CheckedProduct<int64_t>(tensor.sizes())) return std::nullopt;
  if (tensor.numel() == 0) return 0;
  std::optional<int64_t> last = tensor.storage_offset();
  for (int64_t d = 0; d < tensor.dim() && last; ++d) {
    const auto step = CheckedMul<int64_t>(tensor.size(d) - 1, tensor.stride(d));
    last = step && tensor.stride(d) >= 0 ? CheckedAdd<int64_t>(*last, *step) : std::nullopt;
  }
  if (last) last = CheckedAdd<int64_t>(*last, 1);
  return last ? CheckedMul<int64_t>(*last, static_cast<int64_t>(tensor.element_size())) : std::nullopt;
}

Status CheckBounds(const NamedTensor& named) {
  if (named.tensor.layout() != c10::kStrided) {
    return Status(Code::kInput, fmt::format("the tensor '{}' is sparse: save the model with dense tensors", Printable(named.name)));
  }
  const auto needed = NeededBytes(named.tensor);
  if (needed && std::cmp_less_equal(*needed, named.tensor.storage().nbytes())) return Status();
  return Status(Code::kInput, fmt::format("the tensor '{}' reaches beyond its storage of {} bytes: the archive is damaged",
                                          Printable(named.name), named.tensor.storage().nbytes()));
}

}  // namespace

std::vector<NamedTensor> AttributeTensors(const torch::jit::Module& module) {
  Collector collector;
  collector.Visit(module._ivalue(), "");
  return std::move(collector.found);
}

std::vector<at::Tensor> GraphConstants(const torch::jit::Module& module) {
  Collector collector;
  std::set<const torch::jit::Function*> seen;
  for (const torch::jit::Module& part : module.modules()) {
    for (torch::jit::Function* function : part.type()->methods()) {
      if (!function->isGraphFunction() || !seen.insert(function).second) continue;
      CollectConstants(torch::jit::toGraphFunction(*function).graph()->block(), collector);
    }
  }
  std::vector<at::Tensor> tensors;
  for (NamedTensor& named : collector.found) tensors.push_back(std::move(named.tensor));
  return tensors;
}

SourceTensors::SourceTensors(const MoeModel& model) : tensors_(AttributeTensors(model.module)) {
  for (NamedTensor& constant : ConstantTensors(model)) tensors_.push_back(std::move(constant));
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

std::optional<at::Tensor> SourceTensors::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  return tensors_[found->second].tensor;
}

std::optional<std::string> SourceTensors::ConstantName(const at::Tensor& tensor) const {
  for (const NamedTensor& named : tensors_) {
    if (named.name.starts_with("constant:") && named.tensor.const_data_ptr() == tensor.const_data_ptr() &&
        named.tensor.dtype() == tensor.dtype() && named.tensor.sizes() == tensor.sizes() &&
        named.tensor.strides() == tensor.strides()) {
      return named.name;
    }
  }
  return std::nullopt;
}

Status CheckTensorBounds(const MoeModel& model) {
  for (const NamedTensor& named : AttributeTensors(model.module)) AUTOEP_RETURN_IF_ERROR(CheckBounds(named));
  for (const NamedTensor& named : ConstantTensors(model)) AUTOEP_RETURN_IF_ERROR(CheckBounds(named));
  return Status();
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Pass follow-device: a trace made on the CPU says Device="cpu" wherever a tensor is made, and holds its constants there. Both
// come to follow the model's own device, so that one file runs wherever it is loaded. Numbers on the CPU stay as they are.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "passes/pipeline.h"
#include "passes/rewrite/host_scalars.h"

namespace autoep {
namespace {

constexpr char kName[] = "follow-device";

using torch::jit::Graph;
using torch::jit::GraphFunction;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

using AttributePath = std::vector<std::string>;

bool IsTensorType(const c10::Type& type) { return type.kind() == c10::TypeKind::TensorType; }

// The nearest parameter that a module of this type holds, else its nearest buffer: what Module::to moves.
std::optional<AttributePath> FindOwnTensor(const c10::ClassTypePtr& module) {
  std::optional<AttributePath> buffer;
  std::deque<std::pair<c10::ClassTypePtr, AttributePath>> queue = {{module, {}}};
  while (!queue.empty()) {
    const auto [type, path] = queue.front();
    queue.pop_front();
    for (size_t i = 0; i < type->numAttributes(); ++i) {
      AttributePath below = path;
      below.push_back(type->getAttributeName(i));
      const c10::TypePtr& held = type->getAttribute(i);
      if (IsTensorType(*held) && type->is_parameter(i)) return below;
      if (IsTensorType(*held) && !buffer) buffer = below;
      if (const auto inner = held->cast<c10::ClassType>(); inner && inner->is_module()) queue.emplace_back(inner, std::move(below));
    }
  }
  return buffer;
}

bool IsHostDevice(const Value* value) {
  if (value->node()->kind() != prim::Constant || value->type()->kind() != c10::TypeKind::DeviceObjType) return false;
  const auto device = torch::jit::toIValue(value);
  return device && device->isDevice() && device->toDevice().is_cpu();
}

// A tensor with dimensions: one without may meet tensors of any device.
bool IsHostTensor(const Value* value) {
  if (value->node()->kind() != prim::Constant || !IsTensorType(*value->type())) return false;
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isTensor() && constant->toTensor().defined() && constant->toTensor().is_cpu() &&
         constant->toTensor().dim() > 0;
}

struct HostValues {
  std::vector<Value*> devices;
  std::vector<Value*> tensors;
  bool empty() const { return devices.empty() && tensors.empty(); }
};

void AddHostValue(Value* constant, HostValues& found) {
  if (IsHostDevice(constant)) found.devices.push_back(constant);
  if (IsHostTensor(constant)) found.tensors.push_back(constant);
}

std::string Count(size_t number, const char* what) { return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s"); }

class FollowDevice : public Pass {
 public:
  explicit FollowDevice(PassContext& context) : context_(context) {}

  Result<Change> Run(MoeModel& model) override {
    std::unordered_map<const GraphFunction*, HostValues> host_values;
    functions_ = AllFunctions(ObjectIndex(model.module), [&](GraphFunction& function, Node* node, GraphFunction*) {
      if (node->kind() == prim::Constant) AddHostValue(node->output(), host_values[&function]);
    });
    Change change;
    for (GraphFunction* function : functions_) {
      const HostValues& found = host_values[function];
      if (found.empty() || !context_.Allow(kName)) continue;
      const std::string name = function->qualname().qualifiedName();
      Value* device = InsertDevice(*function);
      if (device == nullptr) {
        change.limits.push_back(fmt::format(
            "{} makes tensors on the CPU and holds no tensor to take another device from: the model runs on the CPU alone", name));
        continue;
      }
      for (Value* old : found.devices) Replace(old, device);
      for (Value* tensor : found.tensors) Move(*function->graph(), tensor, device);
      change.edits.push_back(fmt::format("{}: {} and {} follow the device of {}", name, Count(found.devices.size(), "device"),
                                         Count(found.tensors.size(), "constant"), Printed(device)));
    }
    return change;
  }

 private:
  //   %weight : Tensor = prim::GetAttr[name="weight"](%self)
  //   %device : Device = prim::device(%weight)
  // in front of everything; null where the function has neither tensors of its own nor a tensor among its arguments.
  Value* InsertDevice(GraphFunction& function) {
    Graph& graph = *function.graph();
    const torch::jit::WithInsertPoint front(graph.block()->nodes().front());
    Value* tensor = InsertOwnTensor(graph);
    for (Value* input : graph.inputs()) {
      if (tensor == nullptr && IsTensorType(*input->type()) && !IsHostScalar(input)) tensor = input;
    }
    if (tensor == nullptr) return nullptr;
    Value* device = graph.insertNode(graph.create(prim::device, {tensor}))->output();
    device->setType(c10::DeviceObjType::get());
    return device;
  }

  // Few functions ask. What was inserted in others before names a device, so that it makes no scalar.
  bool IsHostScalar(const Value* input) {
    if (!scalars_) scalars_.emplace(functions_);
    return scalars_->Contains(input);
  }

  static Value* InsertOwnTensor(Graph& graph) {
    if (graph.inputs().empty()) return nullptr;
    const auto self = graph.inputs()[0]->type()->cast<c10::ClassType>();
    const auto path = self && self->is_module() ? FindOwnTensor(self) : std::nullopt;
    if (!path) return nullptr;
    Value* value = graph.inputs()[0];
    for (const std::string& name : *path) value = graph.insertGetAttr(value, name);
    return value;
  }

  static void Replace(Value* old, Value* device) {
    old->replaceAllUsesWith(device);
    old->node()->destroy();
  }

  // %moved = aten::to(%constant, %device): the constant itself where it is there already.
  static void Move(Graph& graph, Value* constant, Value* device) {
    const torch::jit::WithInsertPoint behind(constant->node()->next());
    Value* moved = graph.insert(aten::to, {constant, device});
    constant->replaceAllUsesAfterNodeWith(moved->node(), moved);
  }

  static std::string Printed(const Value* device) {
    const Value* tensor = device->node()->input();
    std::string path;
    for (; tensor->node()->kind() == prim::GetAttr; tensor = tensor->node()->input()) {
      path = tensor->node()->s(c10::attr::name) + (path.empty() ? "" : "." + path);
    }
    return path.empty() ? "its argument " + tensor->debugName() : path;
  }

  PassContext& context_;
  std::vector<GraphFunction*> functions_;
  std::optional<HostScalars> scalars_;
};

const RegisterPass kRegistered({kName, "Let tensors that a trace made on the CPU follow the model's own device", 30, true,
                                [](PassContext& context) { return std::make_unique<FollowDevice>(context); }});

}  // namespace
}  // namespace autoep

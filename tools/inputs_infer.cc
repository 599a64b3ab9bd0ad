// SPDX-License-Identifier: Apache-2.0
// Follows each argument of `forward` through the graph, into calls, until an operation tells what the argument is.
#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <algorithm>
#include <optional>
#include <set>

#include "plugin/io/text.h"
#include "tools/inputs.h"

namespace autoep {
namespace {

using torch::jit::Node;
using torch::jit::Value;

// One graph on the way: its formal arguments are the operands of `call` in `caller`'s graph.
struct Frame {
  std::shared_ptr<torch::jit::Graph> graph;
  c10::IValue self;  // the module of a method; none for a function
  const Frame* caller = nullptr;
  const Node* call = nullptr;
};

std::optional<c10::IValue> ConstantOf(const Frame& frame, const Value* value) {
  const Node* node = value->node();
  if (node->kind() == torch::jit::prim::Constant) return torch::jit::toIValue(value);
  if (node->kind() == torch::jit::prim::GetAttr) {
    const auto object = ConstantOf(frame, node->input(0));
    if (!object || !object->isObject()) return std::nullopt;
    return object->toObject()->getAttr(node->s(torch::jit::attr::name));
  }
  if (node->kind() != torch::jit::prim::Param || node->owningBlock() != frame.graph->block()) return std::nullopt;
  if (value->offset() == 0 && frame.self.isObject()) return frame.self;
  if (!frame.caller) return std::nullopt;
  const size_t shift = frame.self.isObject() ? 0 : 1;  // prim::CallFunction has the function before its arguments
  return ConstantOf(*frame.caller, frame.call->input(value->offset() + shift));
}

struct WeightShape {
  std::vector<int64_t> sizes;
  at::ScalarType dtype;
};

// The shape of a weight as the operation sees it: through transpositions and casts.
std::optional<WeightShape> WeightOf(const Frame& frame, const Value* value) {
  const auto constant = ConstantOf(frame, value);
  if (constant && constant->isTensor()) {
    const at::Tensor& tensor = constant->toTensor();
    if (!tensor.defined()) return std::nullopt;
    return WeightShape{tensor.sizes().vec(), tensor.scalar_type()};
  }
  const Node* node = value->node();
  static const std::set<std::string> kSame = {"aten::to", "aten::float", "aten::contiguous", "aten::detach"};
  static const std::set<std::string> kTurned = {"aten::t", "aten::transpose", "aten::numpy_T", "aten::mT"};
  const std::string kind = node->kind().toQualString();
  if (!kSame.count(kind) && !kTurned.count(kind)) return std::nullopt;
  auto shape = WeightOf(frame, node->input(0));
  if (shape && kTurned.count(kind) && shape->sizes.size() >= 2) {
    std::swap(shape->sizes.back(), shape->sizes[shape->sizes.size() - 2]);
  }
  return shape;
}

// What was found about one argument. A cast on the way hides the argument's dtype, so such a finding counts for less.
struct Findings {
  std::optional<InputSpec> ids;
  std::optional<InputSpec> hidden;
  std::optional<InputSpec> hidden_after_cast;
  bool positions = false;
  bool mask = false;
  bool flattened = false;  // the graph itself turns [B, S, H] into rows
};

bool IsTensorLike(const Value* value) {
  const auto kind = value->type()->kind();
  return kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType || kind == c10::TypeKind::TupleType ||
         kind == c10::TypeKind::OptionalType;
}

class Walker {
 public:
  explicit Walker(Findings* findings) : findings_(findings) {}

  // Follows `value`; true if it, or something made of it, is returned by the frame's graph.
  bool Follow(const Frame& frame, const Value* value, bool cast) {
    bool returned = false;
    std::set<const Value*> seen;
    std::vector<std::pair<const Value*, bool>> work = {{value, cast}};
    for (size_t i = 0; i < work.size(); ++i) {
      const auto [current, was_cast] = work[i];
      if (!seen.insert(current).second) continue;
      for (const torch::jit::Use& use : current->uses()) {
        for (const Value* next : Visit(frame, use, was_cast, &returned)) work.emplace_back(next, was_cast || IsCast(use.user));
      }
    }
    return returned;
  }

 private:
  static bool IsCast(const Node* node) {
    static const std::set<std::string> kCasts = {"aten::to", "aten::float", "aten::type_as", "aten::_autocast_to_full_precision"};
    return kCasts.count(node->kind().toQualString()) > 0;
  }

  // The values to follow after this use; empty where the use told all there is.
  std::vector<const Value*> Visit(const Frame& frame, const torch::jit::Use& use, bool cast, bool* returned) {
    const Node* node = use.user;
    if (node->kind() == torch::jit::prim::Return) return Leave(node, use.offset, returned);
    if (node->kind() == torch::jit::prim::CallMethod || node->kind() == torch::jit::prim::CallFunction) {
      return Enter(frame, node, use.offset, cast);
    }
    if (Tells(frame, node, use.offset, cast)) return {};
    std::vector<const Value*> next;
    // A loop's operands are its trip count, its condition, and the first values of what its body carries.
    if (node->kind() == torch::jit::prim::Loop && use.offset >= 2) next.push_back(node->blocks()[0]->inputs()[use.offset - 1]);
    for (const Value* output : node->outputs()) {
      if (IsTensorLike(output)) next.push_back(output);
    }
    return next;
  }

  static std::vector<const Value*> Leave(const Node* node, size_t offset, bool* returned) {
    const Node* owner = node->owningBlock()->owningNode();
    if (!owner) {
      *returned = true;
      return {};
    }
    const size_t skip = owner->kind() == torch::jit::prim::Loop ? 1 : 0;  // a loop's body returns its condition first
    if (offset < skip || offset - skip >= owner->outputs().size()) return {};
    return {owner->output(offset - skip)};
  }

  std::vector<const Value*> Enter(const Frame& frame, const Node* node, size_t offset, bool cast) {
    torch::jit::Function* callee = torch::jit::tryToGraphFunction(const_cast<Node*>(node));
    Frame inner{nullptr, {}, &frame, node};
    size_t formal = offset;
    if (node->kind() == torch::jit::prim::CallMethod) {
      const auto self = ConstantOf(frame, node->input(0));
      if (!self || !self->isObject()) return {};
      callee = self->toObject()->type()->findMethod(node->s(torch::jit::attr::name));
      inner.self = *self;
    } else {
      formal = offset - 1;
    }
    auto* function = dynamic_cast<torch::jit::GraphFunction*>(callee);
    if (!function) return {};
    inner.graph = function->graph();
    if (!Follow(inner, inner.graph->inputs().at(formal), cast)) return {};
    return {node->outputs().begin(), node->outputs().end()};
  }

  // True if this use says what the argument is.
  bool Tells(const Frame& frame, const Node* node, size_t offset, bool cast) {
    const std::string kind = node->kind().toQualString();
    if (kind == "aten::embedding" && offset == 1) return TellsIds(WeightOf(frame, node->input(0)));
    if (kind == "aten::linear" && offset == 0) return TellsHidden(WeightOf(frame, node->input(1)), 1, cast);
    if ((kind == "aten::matmul" || kind == "aten::mm" || kind == "aten::_grouped_mm") && offset == 0) {
      return TellsHidden(WeightOf(frame, node->input(1)), 2, cast);
    }
    if (kind == "aten::addmm" && offset == 1) return TellsHidden(WeightOf(frame, node->input(2)), 2, cast);
    if (kind == "aten::mul" && TellsHidden(WeightOf(frame, node->input(1 - offset)), 1, true)) return false;
    if (kind == "aten::layer_norm" && offset == 0) TellsHidden(WeightOf(frame, node->input(2)), 1, cast);
    if (kind == "aten::cos" || kind == "aten::sin") findings_->positions = true;
    if (kind == "aten::softmax" || kind == "aten::_softmax") findings_->mask = true;
    if (kind == "aten::scaled_dot_product_attention" && offset == 3) findings_->mask = true;
    if (kind == "aten::view" || kind == "aten::reshape" || kind == "aten::flatten") findings_->flattened = true;
    return kind == "aten::cos" || kind == "aten::sin" || kind == "aten::softmax" || kind == "aten::scaled_dot_product_attention";
  }

  bool TellsIds(const std::optional<WeightShape>& weight) {
    if (!weight || weight->sizes.size() != 2) return false;
    InputSpec spec;
    spec.kind = InputKind::kTokenIds;
    spec.dtype = at::kLong;
    // Two embeddings of one argument: the smaller bounds both.
    spec.size = findings_->ids ? std::min(findings_->ids->size, weight->sizes[0]) : weight->sizes[0];
    findings_->ids = spec;
    return true;
  }

  // `from_end`: the dimension, counted from the weight's last, that the argument's last dimension meets.
  bool TellsHidden(const std::optional<WeightShape>& weight, size_t from_end, bool cast) {
    if (!weight || weight->sizes.size() < from_end || !at::isFloatingType(weight->dtype)) return false;
    InputSpec spec;
    spec.kind = InputKind::kHidden;
    spec.dtype = weight->dtype;
    spec.size = weight->sizes[weight->sizes.size() - from_end];
    auto& slot = cast ? findings_->hidden_after_cast : findings_->hidden;
    if (!slot) slot = spec;
    return true;
  }

  Findings* findings_;
};

// The dtype a mask is added in: that of the first floating parameter of two or more dimensions.
at::ScalarType ComputeDtype(const torch::jit::Module& module) {
  for (const auto& parameter : module.parameters()) {
    if (parameter.dim() >= 2 && at::isFloatingType(parameter.scalar_type())) return parameter.scalar_type();
  }
  return at::kFloat;
}

Result<InputSpec> Decide(const torch::jit::Module& module, const std::string& name, const Findings& findings) {
  InputSpec spec;
  if (findings.ids) {
    spec = *findings.ids;
  } else if (findings.positions && !findings.hidden) {
    spec.kind = InputKind::kPositions;
    spec.dtype = at::kLong;
  } else if (findings.hidden || findings.hidden_after_cast) {
    spec = findings.hidden ? *findings.hidden : *findings.hidden_after_cast;
    spec.flat_first = !findings.flattened;
  } else if (findings.mask) {
    spec.kind = InputKind::kMask;
    spec.dtype = ComputeDtype(module);
  } else {
    return Status(Code::kUsage, fmt::format("what the argument '{}' of the model holds cannot be inferred from its graph; give "
                                            "the inputs with --inputs FILE.safetensors, keyed by argument name",
                                            Printable(name)));
  }
  spec.name = name;
  return spec;
}

}  // namespace

Result<std::vector<InputSpec>> InferInputs(const torch::jit::Module& module) {
  const auto method = module.find_method("forward");
  if (!method) return Status(Code::kUsage, "the model has no method 'forward'");
  const auto& schema = method->function().getSchema();
  const Frame frame{method->graph(), module._ivalue(), nullptr, nullptr};
  std::vector<InputSpec> specs;
  for (size_t i = 1; i < schema.arguments().size(); ++i) {
    if (schema.arguments()[i].default_value()) continue;
    Findings findings;
    Walker(&findings).Follow(frame, frame.graph->inputs().at(i), false);
    AUTOEP_ASSIGN_OR_RETURN(InputSpec spec, Decide(module, schema.arguments()[i].name(), findings));
    specs.push_back(std::move(spec));
  }
  if (specs.empty()) return Status(Code::kUsage, "the model's forward takes no argument: there is nothing to vary");
  return specs;
}

}  // namespace autoep

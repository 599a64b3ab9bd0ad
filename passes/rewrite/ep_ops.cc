// SPDX-License-Identifier: Apache-2.0
// Attributes, then nodes:
//   %rows, %offsets, %counts, %order, %received = autoep::dispatch(%tokens, %ids, %scale, %placement, %ep_size, %group, %layer,
//   %abi) %done = autoep::experts(%rows, %offsets, %gate_up, %down, %gate_up_bias, %down_bias, %activation, %args, %layer, %abi)
//   %out = autoep::combine(%done, %weights, %order, %counts, %received, %placement, %ep_size, %group, %layer, %abi)
#include "passes/rewrite/ep_ops.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/jit/ir/constants.h>

#include <map>
#include <string>
#include <vector>

#include "passes/rewrite/routes.h"
#include "plugin/contract/schemas.h"

namespace autoep {
namespace {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

at::Tensor PlacementTable(const contract::Placement& placement) {
  at::Tensor table = at::empty({static_cast<int64_t>(placement.experts.size()), 1, 2}, at::kLong);
  int64_t* next = table.mutable_data_ptr<int64_t>();
  for (const contract::ExpertSlot& slot : placement.experts) {
    *next++ = slot.rank;
    *next++ = slot.slot;
  }
  return table;
}

at::Tensor Placeholder(const ExpertTensor& tensor) {
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = 0;
  return at::empty(shape, at::TensorOptions().dtype(tensor.dtype)).set_requires_grad(tensor.requires_grad);
}

class Inserter {
 public:
  Inserter(Graph& graph, const BlockMatch& match, const PlannedLayer& planned)
      : graph_(graph), self_(graph.inputs().at(0)), match_(match), planned_(planned) {}

  Value* Insert() {
    const torch::jit::WithInsertPoint here(match_.insert_after->next());
    Node* const behind = match_.insert_after->next();
    Value* out = InsertOps();
    for (Node* node = match_.insert_after->next(); node != behind; node = node->next())
      node->setSourceRange(match_.out->node()->sourceRange());
    return out;
  }

 private:
  Value* InsertOps() {
    Value* layer = Attribute("layer");
    Value* group = Attribute("group");
    Value* placement = Attribute("placement");
    Value* ep_size = graph_.insertConstant(planned_.placement.ep_size);
    Value* abi = graph_.insertConstant(contract::kOpAbi);
    Value* none = graph_.insertConstant(at::IValue());
    const Routes routes = InsertRoutes(graph_, match_);
    Value* tokens = match_.flatten ? AsColumns(graph_, match_.tokens, match_.layer.hidden) : match_.tokens;
    const bool on_input = match_.layer.weights_on_input;
    Value* sent = Op("dispatch", {tokens, routes.ids, on_input ? routes.weights : none, placement, ep_size, group, layer, abi});
    const auto parts = sent->node()->inputs();  // of the tuple that gathers them
    Value* activation = graph_.insertConstant(match_.layer.activation);
    Value* args = graph_.insertConstant(c10::List<double>(match_.layer.activation_args));
    Value* done = Op("experts", {parts[0], parts[1], Weight({"gate_up", "up"}), Weight({"down"}),
                                 Weight({"gate_up_bias", "up_bias"}), Weight({"down_bias"}), activation, args, layer, abi});
    Value* out = Op("combine",
                    {done, on_input ? none : routes.weights, parts[3], parts[2], parts[4], placement, ep_size, group, layer, abi});
    out = AddIdentity(graph_, routes, out, tokens);
    if (match_.flatten) out = graph_.insert(c10::aten::reshape_as, {out, match_.tokens});
    return Cast(out);
  }

  Value* Op(const char* name, std::vector<Value*> inputs) {
    std::vector<torch::jit::NamedValue> arguments(inputs.begin(), inputs.end());
    return graph_.insert(c10::Symbol::fromQualString(std::string("autoep::") + name), arguments);
  }

  Value* Attribute(const std::string& name) { return graph_.insertGetAttr(self_, planned_.Attribute(name)); }

  // The weight of one of these roles, or None.
  Value* Weight(const std::vector<std::string>& roles) {
    for (const PlannedTensor& tensor : planned_.tensors) {
      for (const std::string& role : roles) {
        if (tensor.tensor.role == role) return graph_.insertGetAttr(self_, tensor.attribute);
      }
    }
    return graph_.insertConstant(at::IValue());
  }

  // combine answers in promote(rows, weights). With F32 or F64 experts that is `out`'s dtype already, and no dtype is baked in.
  Value* Cast(Value* out) {
    const at::ScalarType rows = match_.layer.tensors.at(0).dtype;
    if (match_.out_dtype == rows && (rows == at::kFloat || rows == at::kDouble)) return out;
    return graph_.insert(c10::aten::to, {out, match_.out_dtype});
  }

  Graph& graph_;
  Value* self_;
  const BlockMatch& match_;
  const PlannedLayer& planned_;
};

}  // namespace

void AddAttributes(torch::jit::Module& block, const PlannedLayer& planned) {
  for (const PlannedTensor& tensor : planned.tensors) {
    block.register_parameter(tensor.attribute, Placeholder(tensor.tensor), /*is_buffer=*/false);
  }
  block.register_buffer(planned.Attribute("placement"), PlacementTable(planned.placement));
  block.register_attribute(planned.Attribute("group"), c10::StringType::get(), "");
  block.register_attribute(planned.Attribute("layer"), c10::StringType::get(), planned.label);
}

std::map<std::string, Node*> FindDispatches(Graph& graph) {
  static const auto dispatch = c10::Symbol::fromQualString("autoep::dispatch");
  std::map<std::string, Node*> found;
  for (Node* node : graph.nodes()) {
    if (node->kind() == dispatch) found.emplace(node->input(6)->node()->s(c10::attr::name), node);
  }
  return found;
}

Value* InsertEpOps(Graph& graph, const BlockMatch& match, const PlannedLayer& planned) {
  return Inserter(graph, match, planned).Insert();
}

}  // namespace autoep

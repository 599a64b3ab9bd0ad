// SPDX-License-Identifier: Apache-2.0
// One expert after the other:
//   %y = aten::linear(act(aten::linear(%x, %gate)) * aten::linear(%x, %up), %down)
//   %w = aten::sum(aten::where(aten::eq(%ids, e), %weights, 0), [-1], True); %sum = aten::add(%sum, aten::mul(%y, %w))
#include "passes/rewrite/dense_experts.h"

#include <c10/util/Exception.h>
#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "passes/rewrite/routes.h"
#include "plugin/contract/activation.h"

namespace autoep {
namespace {

using contract::Activation;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

class DenseExperts {
 public:
  DenseExperts(Graph& graph, const BlockMatch& match) : graph_(graph), match_(match) {}

  Value* Insert() {
    const torch::jit::WithInsertPoint here(match_.insert_after->next());
    Node* const behind = match_.insert_after->next();
    Value* sum = InsertSum();
    for (Node* node = match_.insert_after->next(); node != behind; node = node->next()) {
      node->setSourceRange(match_.out->node()->sourceRange());
    }
    return sum;
  }

 private:
  Value* InsertSum() {
    Value* rows = graph_.insert(aten::flatten, {match_.tokens, 0, -2});
    const Routes routes = InsertRoutes(graph_, match_);
    Value* sum = nullptr;
    for (int64_t e = 0; e < match_.layer.num_experts; ++e) {
      Value* chosen = graph_.insert(aten::eq, {routes.ids, e});
      Value* masked = graph_.insert(aten::mul, {routes.weights, chosen});
      Value* weight = graph_.insert(aten::sum, {masked, std::vector<int64_t>{-1}, true});
      Value* part = graph_.insert(aten::mul, {Expert(rows, e), weight});
      sum = sum ? graph_.insert(aten::add, {sum, part}) : part;
    }
    sum = AddIdentity(graph_, routes, sum, rows);
    sum = graph_.insert(aten::reshape_as, {sum, match_.tokens});
    return graph_.insert(aten::to, {sum, match_.out_dtype});
  }

  Value* Expert(Value* rows, int64_t e) {
    const ExpertFfn& ffn = match_.rebuilt.size() == 1 ? match_.rebuilt[0] : match_.rebuilt.at(e);
    Value* up = Rows(Product(rows, ffn.up.projection, e), ffn.up.rows, ffn.up.projection.out());
    Value* gate = ffn.gate ? Rows(Product(rows, ffn.gate->projection, e), ffn.gate->rows, ffn.gate->projection.out()) : nullptr;
    return Product(Activate(ffn, gate, up), ffn.down, e);
  }

  Value* Product(Value* rows, const Projection& projection, int64_t e) {
    Value* matrix = Stored(projection.weight, e);
    if (projection.stored_in_out) matrix = graph_.insert(aten::transpose, {matrix, 0, 1});
    return graph_.insert(aten::linear,
                         {rows, matrix, projection.bias ? Stored(*projection.bias, e) : graph_.insertConstant(at::IValue())});
  }

  // The stored tensor; of a stacked one, expert e's.
  Value* Stored(const Weight& weight, int64_t e) {
    Value* value = nullptr;
    if (weight.name.starts_with("constant:")) {
      value = graph_.insertConstant(weight.tensor);
    } else {
      value = graph_.inputs().at(0);
      for (size_t begin = 0; begin < weight.name.size();) {
        const size_t end = std::min(weight.name.find('.', begin), weight.name.size());
        value = graph_.insertGetAttr(value, weight.name.substr(begin, end - begin));
        begin = end + 1;
      }
    }
    if (match_.rebuilt.size() > 1 && !weight.at) return value;
    // A stack may be stored as one matrix.
    value = graph_.insert(aten::view, {value, weight.tensor.sizes().vec()});
    return graph_.insert(aten::select, {value, 0, e});
  }

  Value* Rows(Value* product, const RowRange& rows, int64_t all) {
    if (rows == RowRange{0, all, 1}) return product;
    return graph_.insert(aten::slice, {product, -1, rows.begin, rows.begin + (rows.count - 1) * rows.step + 1, rows.step});
  }

  Value* Activate(const ExpertFfn& ffn, Value* gate, Value* up) {
    const auto spec = contract::ParseActivation(ffn.activation);
    TORCH_CHECK(spec && spec->gated == (gate != nullptr), "no dense form of the activation ", ffn.activation);
    Value* x = gate ? gate : up;
    if (spec->kind == Activation::kClampedSwiglu) {
      const double alpha = ffn.activation_args.at(0);
      const double limit = ffn.activation_args.at(1);
      x = graph_.insert(aten::clamp, {x, -std::numeric_limits<double>::infinity(), limit});
      Value* swish = graph_.insert(aten::mul, {x, graph_.insert(aten::sigmoid, {graph_.insert(aten::mul, {x, alpha})})});
      up = graph_.insert(aten::clamp, {up, -limit, limit});
      if (spec->shift != 0) up = graph_.insert(aten::add, {up, spec->shift});
      return graph_.insert(aten::mul, {up, swish});
    }
    x = Unary(spec->kind, x);
    return gate ? graph_.insert(aten::mul, {x, up}) : x;
  }

  Value* Unary(Activation kind, Value* x) {
    switch (kind) {
      case Activation::kSilu:
        return graph_.insert(aten::silu, {x});
      case Activation::kGelu:
        return graph_.insert(aten::gelu, {x}, {{"approximate", std::string("none")}});
      case Activation::kGeluTanh:
        return graph_.insert(aten::gelu, {x}, {{"approximate", std::string("tanh")}});
      case Activation::kRelu:
        return graph_.insert(aten::relu, {x});
      case Activation::kReluSquared:
        return graph_.insert(aten::square, {graph_.insert(aten::relu, {x})});
      case Activation::kClampedSwiglu:
        break;
    }
    TORCH_CHECK(false, "no dense form of this activation");
  }

  Graph& graph_;
  const BlockMatch& match_;
};

}  // namespace

Value* InsertDenseExperts(Graph& graph, const BlockMatch& match) {
  Value* sum = DenseExperts(graph, match).Insert();
  match.out->replaceAllUsesAfterNodeWith(match.insert_after, sum);
  return sum;
}

}  // namespace autoep

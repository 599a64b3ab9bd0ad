// SPDX-License-Identifier: Apache-2.0
// Tables and masks of all experts become the k entries that may count.
#include "passes/rewrite/routes.h"

#include <cstdint>
#include <vector>

namespace autoep {

using torch::jit::Graph;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

class RouteMaker {
 public:
  RouteMaker(Graph& graph, const BlockMatch& match) : graph_(graph), match_(match), k_(match.layer.top_k) {}

  Routes Make() {
    Routes routes;
    if (match_.routing == Routing::kPairs) {
      routes.ids = Columns(match_.ids, k_);
      routes.weights = Columns(match_.weights, k_);
    } else {
      Value* table = Table();
      routes.ids = match_.ids ? Columns(match_.ids, k_) : Largest(table);
      routes.weights = graph_.insert(aten::gather, {table, -1, routes.ids});
    }
    if (match_.weights_scale != 1.0) routes.weights = graph_.insert(aten::mul, {routes.weights, match_.weights_scale});
    if (match_.identity_experts > 0) TakeIdentityApart(routes);
    return routes;
  }

 private:
  Value* Columns(Value* value, int64_t columns) {
    return match_.flatten ? AsColumns(graph_, value, columns) : value;
  }

  int64_t Experts() const { return match_.layer.num_experts + match_.identity_experts; }

  // [T, E]: the weight of each expert, 0 where it is not chosen.
  Value* Table() {
    if (match_.routing == Routing::kTable) return Columns(match_.weights, Experts());
    Value* mask = Columns(match_.mask, Experts());
    Value* weights = AsColumns(graph_, match_.weights, OneWeightAToken() ? 1 : Experts());
    return graph_.insert(aten::mul, {weights, graph_.insert(aten::type_as, {mask, weights})});
  }

  bool OneWeightAToken() const { return match_.one_weight; }

  Value* Largest(Value* table) {
    Value* size = graph_.insert(aten::abs, {table});
    Value* both = graph_.insert(aten::topk, {size, k_, -1, true, true});
    return graph_.insertNode(graph_.createTupleUnpack(both))->output(1);
  }

  // A token goes once more to an expert that it chose, and not to one whose weights may be such that 0 times its answer is no
  // number.
  void TakeIdentityApart(Routes& routes) {
    Value* outside = graph_.insert(aten::ge, {routes.ids, match_.layer.num_experts});
    Value* inside = graph_.insert(aten::logical_not, {outside});
    Value* apart = graph_.insert(aten::masked_fill, {routes.weights, inside, 0.0});
    const std::vector<int64_t> last = {-1};
    routes.identity = graph_.insert(aten::sum, {apart, last, true});
    routes.weights = graph_.insert(aten::masked_fill, {routes.weights, outside, 0.0});
    Value* chosen = graph_.insert(aten::amax, {graph_.insert(aten::masked_fill, {routes.ids, outside, -1}), last, true});
    routes.without_expert = graph_.insert(aten::lt, {chosen, 0});
    routes.ids = graph_.insert(aten::where, {outside, graph_.insert(aten::clamp_min, {chosen, 0}), routes.ids});
  }

  Graph& graph_;
  const BlockMatch& match_;
  const int64_t k_;
};

}  // namespace

Value* AsColumns(Graph& graph, Value* value, int64_t columns) {
  const std::vector<int64_t> sizes = {-1, columns};
  return graph.insert(aten::reshape, {value, sizes});
}

Value* AddIdentity(Graph& graph, const Routes& routes, Value* sum, Value* tokens) {
  if (!routes.identity) return sum;
  Value* experts = graph.insert(aten::masked_fill, {sum, routes.without_expert, 0.0});
  return graph.insert(aten::add, {experts, graph.insert(aten::mul, {tokens, routes.identity})});
}

Routes InsertRoutes(Graph& graph, const BlockMatch& match) { return RouteMaker(graph, match).Make(); }

}  // namespace autoep

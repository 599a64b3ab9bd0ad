// SPDX-License-Identifier: Apache-2.0
// Bounds from the ops that make a table: one_hot and scatter put entries in, products and masks only take them out.
#include "passes/detect/support.h"

#include <cmath>
#include <limits>
#include <set>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();
constexpr int kDeepest = 64;

class SupportFinder {
 public:
  SupportFinder(const GraphFlow& flow, const ShapeTable& shapes) : flow_(flow), shapes_(shapes) {}

  std::optional<Support> Find(Value* value, int at, int depth = 0) {
    Node* node = value->node();
    if (depth > kDeepest || node->inputs().size() == 0) return std::nullopt;
    auto support = FromNode(node, depth);
    if (!support) return std::nullopt;
    seen_.insert(node);
    // Who else writes in place to it, by the time it is read, is not known here.
    for (const int writer : flow_.Writers(flow_.RootOf(value))) {
      if (writer < at && !seen_.contains(flow_.NodeAt(writer))) return std::nullopt;
    }
    return support;
  }

 private:
  std::optional<Support> Of(Value* value, Node* reader, int depth) { return Find(value, flow_.StepOf(reader), depth + 1); }

  const std::vector<int64_t>* SizesOf(const Value* value) const {
    const auto shape = shapes_.find(value);
    return shape == shapes_.end() ? nullptr : &shape->second.sizes;
  }

  // The last dimension of `value` has the size that it has in `output`.
  bool KeepsLast(const Value* value, const Value* output) const {
    const auto* before = SizesOf(value);
    const auto* after = SizesOf(output);
    return before && after && !before->empty() && !after->empty() && before->back() == after->back();
  }

  bool IsLast(const Value* dim, const Value* of) const {
    const auto at = ConstInt(dim);
    const auto* sizes = SizesOf(of);
    return at && sizes && (*at == -1 || *at == static_cast<int64_t>(sizes->size()) - 1);
  }

  // The number that all entries of a new table have.
  static std::optional<double> Fill(const Value* value) {
    const Node* node = value->node();
    switch (node->kind()) {
      case aten::zeros:
      case aten::zeros_like:
      case aten::new_zeros:
        return 0.0;
      case aten::full:
      case aten::full_like:
        return ConstNumber(node->input(1));
      case aten::new_full:
        return ConstNumber(node->input(2));
      default:
        return std::nullopt;
    }
  }

  std::optional<Support> FromScatter(Node* node) {
    const auto rest = Fill(node->input(0));
    const auto* index = SizesOf(node->input(2));
    if (node->inputs().size() != 4 || !rest || !index || index->empty() || !IsLast(node->input(1), node->output())) return std::nullopt;
    if (*rest != 0 && *rest != kMinusInf) return std::nullopt;
    if (flow_.LastWriterBefore(flow_.RootOf(node->input(0)), flow_.StepOf(node)) >= 0) return std::nullopt;
    // A top-k's are distinct.
    const bool distinct = node->input(2)->node()->kind() == aten::topk;
    return Support{index->back(), *rest, distinct ? node->input(2) : nullptr};
  }

  // one_hot(ids): [..] -> [.., E], one entry a row.
  std::optional<Support> FromOneHot(Node* node) { return Support{1, 0.0, nullptr}; }

  std::optional<Support> FromSum(Node* node, int depth) {
    auto support = Of(node->input(0), node, depth);
    const auto dims = node->inputs().size() > 1 ? ConstInts(node->input(1)) : std::nullopt;
    const auto* sizes = SizesOf(node->input(0));
    const auto* after = SizesOf(node->output());
    if (!support || support->rest != 0 || !dims || dims->size() != 1 || !sizes || !after) return std::nullopt;
    const int64_t rank = static_cast<int64_t>(sizes->size());
    const int64_t dim = (*dims)[0] < 0 ? (*dims)[0] + rank : (*dims)[0];
    // Choices of a token, [.., k, E]: neither experts nor tokens.
    if (dim != rank - 2 || after->back() != sizes->back() || !ParseRowShape(*after)) return std::nullopt;
    return Support{support->most * (*sizes)[dim], 0.0, nullptr};
  }

  // The smaller support of two factors.
  std::optional<Support> FromProduct(Node* node, int depth) {
    std::optional<Support> best;
    for (int side = 0; side < 2; ++side) {
      Value* factor = node->input(side);
      if (factor->type()->kind() != c10::TypeKind::TensorType || !KeepsLast(factor, node->output())) continue;
      const auto support = Of(factor, node, depth);
      if (support && support->rest == 0 && (!best || support->most < best->most)) best = support;
    }
    return best;
  }

  std::optional<Support> FromAdd(Node* node, int depth) {
    if (!KeepsLast(node->input(0), node->output()) || !KeepsLast(node->input(1), node->output())) return std::nullopt;
    const auto a = Of(node->input(0), node, depth), b = Of(node->input(1), node, depth);
    if (!a || !b || a->rest != 0 || b->rest != 0) return std::nullopt;
    return Support{a->most + b->most, 0.0, nullptr};
  }

  // masked_fill(x, mask, v): v wherever the mask is true.
  std::optional<Support> FromFill(Node* node, int depth) {
    const auto value = ConstNumber(node->input(2));
    if (!value || (*value != 0 && *value != kMinusInf)) return std::nullopt;
    if (KeepsLast(node->input(1), node->output())) {
      const auto mask = Of(node->input(1), node, depth);
      if (mask && mask->rest == 1) return Support{mask->most, *value, mask->ids};
    }
    auto table = Of(node->input(0), node, depth);
    return table && table->rest == *value ? table : std::nullopt;
  }

  std::optional<Support> Mapped(Node* node, int depth, double from, double to) {
    auto support = Of(node->input(0), node, depth);
    if (!support || support->rest != from) return std::nullopt;
    support->rest = to;
    return support;
  }

  std::optional<Support> FromNode(Node* node, int depth) {
    Value* first = node->input(0);
    switch (node->kind()) {
      case aten::scatter:
      case aten::scatter_:
        return FromScatter(node);
      case aten::one_hot:
        return FromOneHot(node);
      case aten::sum:
        return FromSum(node, depth);
      case aten::mul:
      case aten::mul_:
      case aten::__and__:
      case aten::logical_and:
        return FromProduct(node, depth);
      case aten::add:
      case aten::add_:
        return FromAdd(node, depth);
      case aten::masked_fill:
      case aten::masked_fill_:
        return FromFill(node, depth);
      case aten::sigmoid:
        return Mapped(node, depth, kMinusInf, 0.0);
      case aten::softmax:
        return IsLast(node->input(1), node->output()) ? Mapped(node, depth, kMinusInf, 0.0) : std::nullopt;
      case aten::logical_not:
      case aten::bitwise_not: {
        auto support = Of(first, node, depth);
        if (!support || (support->rest != 0 && support->rest != 1)) return std::nullopt;
        support->rest = 1 - support->rest;
        return support;
      }
      case aten::eq:
        return ConstNumber(node->input(1)) == 0.0 ? Mapped(node, depth, 0.0, 1.0) : std::nullopt;
      case aten::ne:
      case aten::gt:
        return ConstNumber(node->input(1)) == 0.0 ? Mapped(node, depth, 0.0, 0.0) : std::nullopt;
      case aten::div:
      case aten::div_: {
        auto support = Of(first, node, depth);
        return support && support->rest == 0 && KeepsLast(first, node->output()) ? support : std::nullopt;
      }
      case aten::to:
      case aten::type_as:
      case aten::contiguous:
      case aten::detach:
      case aten::clone:
      case aten::view:
      case aten::reshape:
      case aten::flatten:
      case aten::view_as:
        return KeepsLast(first, node->output()) ? Of(first, node, depth) : std::nullopt;
      default:
        return std::nullopt;
    }
  }

  const GraphFlow& flow_;
  const ShapeTable& shapes_;
  std::set<const Node*> seen_;
};

}  // namespace

std::optional<Support> FindSupport(Value* value, int at, const GraphFlow& flow, const ShapeTable& shapes) {
  auto support = SupportFinder(flow, shapes).Find(value, at);
  const auto shape = shapes.find(value);
  if (!support || support->rest != 0 || shape == shapes.end()) return std::nullopt;
  // Ids serve only where they have the table's rows.
  if (support->ids) {
    const auto ids = shapes.find(support->ids);
    if (ids == shapes.end() || ids->second.sizes.size() != shape->second.sizes.size()) support->ids = nullptr;
  }
  return support;
}

}  // namespace autoep

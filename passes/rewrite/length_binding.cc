// SPDX-License-Identifier: Apache-2.0
// The patterns, where %L = aten::size(%x, 1) of an argument, or of what keeps its rows:
//   %cut = aten::slice(%y, d, 0, %L, 1), then what keeps dimension d: unsqueeze, transpose, products, ..
//   aten::select(%cut, d, 0), aten::select(%cut, d, 1), .. up to a constant N - 1: an unrolled loop of N steps
//   aten::slice(%table, d, 0, %L - c, 1) of a stored tensor with S entries along d: c < L <= S + c
#include "passes/rewrite/length_binding.h"

#include <fmt/format.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "passes/detect/ir.h"
#include "passes/model/modules.h"

namespace autoep {
namespace {

using torch::jit::Graph;
using torch::jit::GraphFunction;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

constexpr size_t kMostNodes = 2000;  // on the way from a read to the argument
constexpr int64_t kLengthDim = 1;    // [batch, length, ..]

bool StartsAtZero(const Node* slice) {
  return (IsNone(slice->input(2)) || ConstInt(slice->input(2)) == 0) && ConstInt(slice->input(4)) == 1;
}

bool TakesAll(const Node* slice) {
  return StartsAtZero(slice) && (IsNone(slice->input(3)) || ConstInt(slice->input(3)) == INT64_MAX);
}

const Value* StripFullSlices(const Value* value) {
  while (value->node()->kind() == aten::slice && TakesAll(value->node())) value = value->node()->input(0);
  return value;
}

bool KeepsShape(const Node* node) {
  static const std::set<c10::Symbol> kinds = {aten::to,   aten::exp,  aten::neg,        aten::silu,  aten::softplus, aten::sigmoid,
                                              aten::relu, aten::gelu, aten::contiguous, aten::clone, aten::detach,   aten::dropout};
  return kinds.contains(node->kind());
}

bool IsElementwise(const Node* node) {
  return node->kind() == aten::mul || node->kind() == aten::add || node->kind() == aten::sub || node->kind() == aten::div;
}

// Follows a dimension of a value up to where it was cut, or to an argument of the function, through the functions that it calls.
class Follower {
 public:
  // `dim` of `value` has the length of a sequence: an argument's, where `whole`; else one that a slice cut to it.
  bool IsLength(const Value* value, int64_t dim, bool whole) {
    seen_.clear();
    return Follow(value, dim, whole, {});
  }

  // %n = aten::size(%x, 1), perhaps less a constant: that constant.
  std::optional<int64_t> LengthLess(const Value* number) { return LengthLess(number, {}); }

 private:
  using Frames = std::vector<const Node*>;  // calls that the value is inside of

  bool Follow(const Value* value, int64_t dim, bool whole, Frames frames) {
    const Node* node = value->node();
    if (dim < 0 || seen_.size() > kMostNodes || !seen_.insert({value, dim}).second) return false;
    const auto next = [&](size_t input, int64_t at) { return Follow(node->input(input), at, whole, frames); };
    if (node->kind() == prim::Param) return FollowArgument(value, dim, whole, std::move(frames));
    if (node->kind() == prim::CallMethod) return FollowCall(node, dim, whole, std::move(frames));
    if (node->kind() == aten::slice) return FollowSlice(node, dim, whole, std::move(frames));
    if (KeepsShape(node)) return next(0, dim);
    if (IsElementwise(node)) return next(0, dim) || (node->input(1)->type()->isSubtypeOf(*c10::TensorType::get()) && next(1, dim));
    if (node->kind() == aten::unsqueeze) {
      const auto at = ConstInt(node->input(1));
      return at && *at >= 0 && *at != dim && next(0, dim - (*at < dim ? 1 : 0));
    }
    if (node->kind() == aten::transpose) {
      const auto a = ConstInt(node->input(1)), b = ConstInt(node->input(2));
      return a && b && *a >= 0 && *b >= 0 && next(0, dim == *a ? *b : dim == *b ? *a : dim);
    }
    if (node->kind() == aten::linear) return dim <= kLengthDim && next(0, dim);
    if (node->kind() == aten::embedding) return dim <= kLengthDim && next(1, dim);
    if (node->kind() == prim::ListUnpack) {
      const Node* parts = node->input()->node();
      if (parts->kind() != aten::chunk && parts->kind() != aten::split && parts->kind() != aten::split_with_sizes) return false;
      const auto at = ConstInt(parts->input(2));
      return at && *at != dim && Follow(parts->input(0), dim, whole, frames);
    }
    return false;
  }

  bool FollowArgument(const Value* value, int64_t dim, bool whole, Frames frames) {
    if (frames.empty()) return whole && dim == kLengthDim;
    const Node* call = frames.back();
    frames.pop_back();
    return Follow(call->input(value->offset()), dim, whole, std::move(frames));
  }

  bool FollowCall(const Node* call, int64_t dim, bool whole, Frames frames) {
    GraphFunction* callee = torch::jit::tryToGraphFunction(const_cast<Node*>(call));
    if (!callee || callee->graph()->outputs().size() != 1) return false;
    frames.push_back(call);
    return Follow(callee->graph()->outputs()[0], dim, whole, std::move(frames));
  }

  bool FollowSlice(const Node* slice, int64_t dim, bool whole, Frames frames) {
    if (ConstInt(slice->input(1)) != dim || TakesAll(slice)) return Follow(slice->input(0), dim, whole, std::move(frames));
    return StartsAtZero(slice) && LengthLess(slice->input(3), frames) == 0;
  }

  std::optional<int64_t> LengthLess(const Value* number, const Frames& frames) {
    const Node* node = IndexTensor(number)->node();
    int64_t less = 0;
    const bool scaled = node->inputs().size() > 2 && ConstInt(node->input(2)) != 1;
    if (node->kind() == aten::sub && ConstNumber(node->input(1)) && !scaled) {
      less = static_cast<int64_t>(*ConstNumber(node->input(1)));
      number = node->input(0);
    }
    const auto size = FindSize(number);
    if (!size) return std::nullopt;
    const auto outer = std::exchange(seen_, {});
    const bool length = Follow(size->of, size->dim, /*whole=*/true, frames);
    seen_ = outer;
    return length ? std::optional(less) : std::nullopt;
  }

  std::set<std::pair<const Value*, int64_t>> seen_;
};

class Finder {
 public:
  explicit Finder(const torch::jit::Module& model) : index_(model) {}

  std::vector<LengthBinding> Find() {
    const GraphFunction* last = nullptr;
    AllFunctions(index_, [&](GraphFunction& function, Node* node, GraphFunction*) {
      if (&function != last) EndFunction();
      last = &function;
      if (node->kind() == aten::select) See(node);
      if (node->kind() == aten::slice) FindCut(node);
    });
    EndFunction();
    return std::move(found_);
  }

 private:
  using Read = std::pair<const Value*, int64_t>;  // a value, and the dimension of which entries are read
  struct Entries {
    Node* first = nullptr;
    std::set<int64_t> numbers;
  };

  void EndFunction() {
    for (const auto& read : order_) FindUnrolled(read);
    reads_.clear();
    order_.clear();
    told_.clear();
  }

  void See(Node* select) {
    const auto dim = ConstInt(select->input(1)), number = ConstInt(select->input(2));
    if (!dim || !number || *dim < 0 || *number < 0) return;
    const Read read{StripFullSlices(select->input(0)), *dim};
    const auto [at, added] = reads_.try_emplace(read);
    if (added) {
      at->second.first = select;
      order_.push_back(read);
    }
    at->second.numbers.insert(*number);
  }

  void FindUnrolled(const Read& read) {
    const Entries& entries = reads_.at(read);
    const int64_t steps = static_cast<int64_t>(entries.numbers.size());
    if (steps < 2 || *entries.numbers.rbegin() != steps - 1 || told_.contains(steps)) return;
    if (!Follower().IsLength(read.first, read.second, /*whole=*/false)) return;
    Tell(entries.first, steps, steps);
  }

  void FindCut(Node* slice) {
    const auto dim = ConstInt(slice->input(1));
    if (!dim || *dim < 0 || TakesAll(slice) || !StartsAtZero(slice) || ConstInt(slice->input(3))) return;
    const auto entries = StoredSize(StripFullSlices(slice->input(0)), *dim);
    const auto less = entries ? Follower().LengthLess(slice->input(3)) : std::nullopt;
    if (less && *less >= 0 && !told_.contains(*entries + *less)) Tell(slice, *less + 1, *entries + *less);
  }

  void Tell(Node* node, int64_t least, int64_t most) {
    told_.insert(most);
    const std::string source = SourceLine(node);
    found_.push_back({node, least, most, source.empty() ? NodeText(node) : NodeText(node) + ", at " + source});
  }

  // Of a tensor that the model stores, under one name in all objects that run the function.
  std::optional<int64_t> StoredSize(const Value* value, int64_t dim) const {
    if (value->node()->kind() == aten::slice) return StoredSize(value->node()->input(0), dim);
    const auto size = [&](const c10::IValue& stored) -> std::optional<int64_t> {
      if (!stored.isTensor() || !stored.toTensor().defined() || stored.toTensor().dim() <= dim) return std::nullopt;
      return stored.toTensor().size(dim);
    };
    if (const auto constant = torch::jit::toIValue(value)) return size(*constant);
    const Node* get = value->node();
    if (get->kind() != prim::GetAttr || get->input()->node()->kind() != prim::Param) return std::nullopt;
    std::optional<int64_t> found;
    for (const auto& object : index_.OfType(get->input()->type()->expect<c10::ClassType>().get())) {
      const auto here = size(object->getAttr(get->s(c10::attr::name)));
      if (!here || (found && found != here)) return std::nullopt;
      found = here;
    }
    return found;
  }

  const ObjectIndex index_;
  std::map<Read, Entries> reads_;
  std::vector<Read> order_;
  std::set<int64_t> told_;  // lengths that the function is known to be bound to
  std::vector<LengthBinding> found_;
};

}  // namespace

std::vector<LengthBinding> FindLengthBindings(const torch::jit::Module& model) { return Finder(model).Find(); }

std::string DescribeLengths(const LengthBinding& binding) {
  if (binding.least == binding.most) return fmt::format("a length of {} only", binding.most);
  return fmt::format("lengths from {} to {}", binding.least, binding.most);
}

}  // namespace autoep

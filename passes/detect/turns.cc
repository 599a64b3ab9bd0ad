// SPDX-License-Identifier: Apache-2.0
// For each op, how far its numbers were from where its answer turns.
#include "passes/detect/turns.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Stack;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

using Symbols = std::set<c10::Symbol>;

Symbols Kinds(std::initializer_list<const char*> names) {
  Symbols kinds;
  for (const char* name : names) kinds.insert(c10::Symbol::fromQualString(name));
  return kinds;
}

// Numbers, none for what is true or false, or no number.
std::optional<at::Tensor> Numbers(const c10::IValue& value) {
  if (value.isInt() || value.isDouble()) return at::scalar_tensor(value.toScalar(), at::kDouble);
  if (!value.isTensor() || !value.toTensor().defined() || value.toTensor().scalar_type() == at::kBool) return std::nullopt;
  return value.toTensor().to(at::kDouble);
}

bool IsData(const c10::IValue& value) { return value.isTensor() && value.toTensor().is_floating_point(); }

// Of two shapes, the difference that is largest.
at::Tensor FarthestElement(const c10::List<int64_t>& a, const c10::List<int64_t>& b) {
  int64_t farthest = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (std::abs(a[i] - b[i]) > std::abs(farthest)) farthest = a[i] - b[i];
  }
  return at::scalar_tensor(farthest, at::kDouble);
}

// Up to which a type counts exactly, if that is few.
std::optional<double> LargestCount(at::ScalarType type) {
  switch (type) {
    case at::kChar:
      return 127;
    case at::kByte:
      return 255;
    case at::kShort:
      return 32767;
    case at::kBFloat16:
      return 256;
    case at::kHalf:
      return 2048;
    default:
      return std::nullopt;
  }
}

constexpr int kCount = 9;  // a place of its own: every op may count

at::Tensor Number(double number) { return at::scalar_tensor(number, at::kDouble); }

}  // namespace

bool Turns::Sides::turned() const {
  switch (at) {
    case At::kZeroAndMore:
      return below && (equal || above);
    case At::kMore:
      return above && (below || equal);
    case At::kEqual:
      return equal && (below || above);
    case At::kBothSides:
      return below && above;
  }
  return false;
}

void Turns::Record(Place place, At at, const at::Tensor& distance, bool data) {
  Sides& sides = seen_[place];
  sides.at = at;
  sides.data |= data;
  if (distance.numel() == 0) return;
  sides.below |= (distance < 0).any().item().toBool();
  sides.equal |= (distance == 0).any().item().toBool();
  sides.above |= (distance > 0).any().item().toBool();
  sides.nearest = std::min(sides.nearest, distance.abs().min().item().toDouble());
}

void Turns::SeeComparison(const Node* node, At at, const Stack& inputs) {
  if (inputs[0].isIntList() && inputs[1].isIntList()) {
    Record({node, 0}, at, FarthestElement(inputs[0].toIntList(), inputs[1].toIntList()));
    return;
  }
  const auto a = Numbers(inputs[0]), b = Numbers(inputs[1]);
  if (a && b) Record({node, 0}, at, *a - *b, IsData(inputs[0]) || IsData(inputs[1]));
}

void Turns::SeeRange(const Node* node, const c10::IValue& first, const c10::IValue& last, const c10::IValue& step) {
  const double length = last.toScalar().toDouble() - first.toScalar().toDouble();
  const double stride = step.toScalar().toDouble();
  Record({node, 0}, At::kMore, Number(stride < 0 ? -length : length));
  if (std::abs(stride) > 1) Record({node, 1}, At::kMore, Number(std::abs(length) - std::abs(stride)));
}

// Ends behind the last element are cut off.
void Turns::SeeSlice(const Node* node, const Stack& inputs) {
  const bool list = inputs[0].isList();
  const size_t first = list ? 1 : 2;
  const int64_t size = list ? static_cast<int64_t>(inputs[0].toListRef().size()) : inputs[0].toTensor().size(inputs[1].toInt());
  for (size_t i = first; i < first + 2; ++i) {
    if (!inputs[i].isInt() || std::abs(static_cast<double>(inputs[i].toInt())) >= std::ldexp(1.0, 62)) continue;
    const int64_t end = inputs[i].toInt();
    Record({node, static_cast<int>(i)}, At::kBothSides, Number(static_cast<double>((end < 0 ? -end : end) - size)));
  }
  const int64_t step = inputs[first + 2].toInt();
  if (step > 1) Record({node, 0}, At::kMore, Number(static_cast<double>(size - step)));
}

// A float is rounded towards zero.
void Turns::SeeCast(const Node* node, const at::Tensor& from, const at::Tensor& to) {
  const auto numbers = Numbers(from);
  if (!numbers) return;
  if (to.scalar_type() == at::kBool) {
    Record({node, 0}, At::kEqual, *numbers, from.is_floating_point());
  } else if (!to.is_floating_point() && from.is_floating_point()) {
    Record({node, 0}, At::kZeroAndMore, numbers->abs() - 1);
  }
}

// Past the largest number that a small type counts to.
void Turns::SeeCount(const Node* node, const at::Tensor& made) {
  const auto most = LargestCount(made.scalar_type());
  const bool counts = !made.is_floating_point() || node->kind() == aten::cumsum;
  if (most && counts) Record({node, kCount}, At::kZeroAndMore, *most - Numbers(made)->abs());
}

void Turns::See(const Node* node, const Stack& inputs, const Stack& outputs) {
  static const Symbols minima = Kinds({"prim::min", "prim::max"});
  static const Symbols divisions = Kinds({"aten::floordiv", "aten::floor_divide", "aten::remainder", "aten::div"});
  static const Symbols zero_tests =
      Kinds({"aten::Bool", "aten::is_nonzero", "aten::nonzero", "aten::nonzero_numpy", "aten::argwhere", "aten::logical_and",
             "aten::logical_or", "aten::logical_not", "aten::any", "aten::all"});
  static const Symbols bits = Kinds({"aten::bitwise_and", "aten::bitwise_or", "aten::__and__", "aten::__or__"});
  static const Symbols casts = Kinds({"aten::to", "aten::type_as"});
  const auto kind = node->kind();
  if (outputs.size() == 1 && outputs[0].isTensor() && outputs[0].toTensor().defined()) SeeCount(node, outputs[0].toTensor());
  if (kind == aten::lt || kind == aten::ge) {
    SeeComparison(node, At::kZeroAndMore, inputs);
  } else if (kind == aten::gt || kind == aten::le) {
    SeeComparison(node, At::kMore, inputs);
  } else if (kind == aten::eq || kind == aten::ne) {
    SeeComparison(node, At::kEqual, inputs);
  } else if (minima.contains(kind)) {
    TORCH_CHECK(inputs.size() == 2, "of a list's least or largest number no trial can tell where it turns");
    SeeComparison(node, At::kBothSides, inputs);
  } else if (kind == aten::slice) {
    SeeSlice(node, inputs);
  } else if (kind == aten::split && inputs[1].isInt()) {
    Record({node, 0}, At::kZeroAndMore,
           Number(static_cast<double>(inputs[1].toInt() - inputs[0].toTensor().size(inputs[2].toInt()))));
  } else if (kind == aten::chunk) {
    Record({node, 0}, At::kMore, Number(static_cast<double>(inputs[1].toInt() - inputs[0].toTensor().size(inputs[2].toInt()))));
  } else if (divisions.contains(kind)) {
    const auto a = Numbers(inputs[0]), b = Numbers(inputs[1]);
    if (a && b) Record({node, 0}, At::kZeroAndMore, a->abs() - b->abs());
  } else if (kind == c10::Symbol::fromQualString("aten::__range_length")) {
    SeeRange(node, inputs[0], inputs[1], inputs[2]);
  } else if (kind == aten::arange && inputs.size() == 7) {
    SeeRange(node, inputs[0], inputs[1], inputs[2]);
  } else if (kind == aten::Int && inputs[0].isDouble()) {
    Record({node, 0}, At::kZeroAndMore, Number(std::abs(inputs[0].toDouble()) - 1));
  } else if (casts.contains(kind) && inputs[0].isTensor()) {
    SeeCast(node, inputs[0].toTensor(), outputs[0].toTensor());
  } else if (zero_tests.contains(kind)) {
    for (size_t i = 0; i < inputs.size() && (i == 0 || inputs[i].isTensor()); ++i) {
      if (const auto numbers = Numbers(inputs[i])) Record({node, static_cast<int>(i)}, At::kEqual, *numbers, IsData(inputs[i]));
    }
  } else if (bits.contains(kind)) {
    TORCH_CHECK(!Numbers(inputs[0]) && !Numbers(inputs[1]), "of the bits of numbers no trial can tell where they turn");
  }
}

void Turns::Add(const Turns& others) {
  for (const auto& [place, sides] : others.seen_) {
    Sides& mine = seen_[place];
    mine.at = sides.at;
    mine.data |= sides.data;
    mine.below |= sides.below;
    mine.equal |= sides.equal;
    mine.above |= sides.above;
    mine.nearest = std::min(mine.nearest, sides.nearest);
  }
}

const Node* Turns::First(const std::function<bool(Place, const Sides&)>& holds) const {
  const Node* first = nullptr;
  for (const auto& [place, sides] : seen_) {
    if (sides.turned() || !holds(place, sides)) continue;
    if (!first || place.first->isBefore(first)) first = place.first;
  }
  return first;
}

const Node* Turns::Missed() const {
  return First([](Place, const Sides& sides) { return sides.data || (sides.at == At::kEqual && sides.below && sides.above); });
}

const Node* Turns::Approached(const Turns& before) const {
  return First([&](Place place, const Sides& sides) {
    const auto at = before.seen_.find(place);
    return at != before.seen_.end() && sides.nearest < at->second.nearest;
  });
}

}  // namespace autoep

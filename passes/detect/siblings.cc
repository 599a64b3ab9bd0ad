// SPDX-License-Identifier: Apache-2.0
// Comparing modules, and pointing a feed-forward's weights at another expert's tensors.
#include "passes/detect/siblings.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "passes/detect/split_experts.h"
#include "plugin/io/text.h"
#include "presets/preset.h"

namespace autoep {

using torch::jit::Module;

namespace {

std::optional<c10::IValue> FindAttribute(const Module& self, const std::string& path) {
  c10::IValue at = self._ivalue();
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    if (!at.isObject() || !at.toObject()->type()->hasAttribute(name)) return std::nullopt;
    at = at.toObject()->getAttr(name);
    begin = end + 1;
  }
  return at;
}

std::string ClassOf(const c10::ivalue::Object& object) {
  const auto name = object.type()->name();
  return name ? BareClassName(name->qualifiedName()) : "";
}

bool IsTorchIdentity(const c10::IValue& value) {
  if (!value.isObject() || !value.toObject()->type()->name()) return false;
  const std::string name = value.toObject()->type()->name()->qualifiedName();
  return name.starts_with("__torch__.torch.nn.modules.linear.") && BareClassName(name) == "Identity";
}

bool HasCode(const c10::ivalue::Object& object) { return object.type()->findMethod("forward") != nullptr; }

// What differs between two values of a module's attribute, or "".
std::string Difference(const c10::IValue& a, const c10::IValue& b, const std::string& name) {
  if (a.isTensor() != b.isTensor() || a.isObject() != b.isObject() || a.isNone() != b.isNone()) return name + " is of another kind";
  if (a.isTensor()) {
    const at::Tensor& x = a.toTensor();
    const at::Tensor& y = b.toTensor();
    if (x.defined() != y.defined()) return name + " is not in both";
    if (x.defined() && (x.sizes() != y.sizes() || x.scalar_type() != y.scalar_type())) return name + " has another shape or dtype";
    return "";
  }
  if (!a.isObject()) {
    const bool plain = a.isInt() || a.isDouble() || a.isBool() || a.isString() || a.isNone();
    return plain && a.tagKind() == b.tagKind() && a == b ? "" : name + " has another value";
  }
  const auto x = a.toObject();
  const auto y = b.toObject();
  const std::string at = name.empty() ? "the module" : name;
  if (ClassOf(*x) != ClassOf(*y)) return fmt::format("{} is a {} and not a {}", at, ClassOf(*y), ClassOf(*x));
  if (x->type()->numAttributes() != y->type()->numAttributes()) return at + " has other attributes";
  for (size_t i = 0; i < x->type()->numAttributes(); ++i) {
    const std::string& attribute = x->type()->getAttributeName(i);
    if (!y->type()->hasAttribute(attribute)) return fmt::format("{} has no {}", at, attribute);
    const std::string below =
        Difference(x->getAttr(attribute), y->getAttr(attribute), name.empty() ? attribute : name + "." + attribute);
    if (!below.empty()) return below;
  }
  return "";
}

class Collector {
 public:
  Collector(const Module& self, const ServedExperts& served, const ExpertUnits& units, const WeightFinder& weights)
      : self_(self), served_(served), units_(units), weights_(weights) {}

  AllExperts Collect() {
    AllExperts all;
    const std::vector<int>& by_number = served_.unit_of_expert;
    if (by_number.empty()) return CollectOfOneUnit();
    const int64_t held = served_.experts.front();
    const int64_t own = OwnExperts();
    for (int64_t e = own; e < served_.total; ++e) all.identity.push_back(e);
    for (int64_t e = 0; e < own; ++e) {
      if (by_number[e] >= 0) {
        all.experts.push_back(units_.units[by_number[e]]);
        continue;
      }
      if (units_.units[by_number[held]].down.weight.at) {
        ExpertFfn entry = units_.units[by_number[held]];
        PointAt(entry, e);
        all.experts.push_back(std::move(entry));
        continue;
      }
      all.failure = CompareModules(held, e);
      if (!all.failure.empty()) return all;
      ExpertFfn expert = units_.units[by_number[held]];
      all.failure = Redirect(expert, e);
      if (!all.failure.empty()) return all;
      all.experts.push_back(std::move(expert));
    }
    return all;
  }

 private:
  AllExperts CollectOfOneUnit() const {
    AllExperts all;
    const ExpertFfn& unit = units_.units[served_.members.front()];
    if (!HasTensorPerExpert(unit.down)) {
      all.experts = {unit};
    } else if (static_cast<int64_t>(unit.down.counts.size()) != served_.total) {
      all.failure = fmt::format("it holds weights of {} experts, and its router has {}", unit.down.counts.size(), served_.total);
    } else {
      for (int64_t e = 0; e < served_.total; ++e) all.experts.push_back(TakeExpert(unit, e));
    }
    return all;
  }

  // Of a unit that has a tensor for each expert, one expert's.
  ExpertFfn TakeExpert(ExpertFfn unit, int64_t e) const {
    const auto take = [&](Projection& projection) {
      projection.weight = TensorOfExpert(projection, e, weights_);
      projection.form = &ExpertLoopForm();
      projection.counts.clear();
    };
    take(unit.down);
    take(unit.up.projection);
    if (unit.gate) take(unit.gate->projection);
    return unit;
  }

  // How many experts come before those at the end that answer the token itself.
  int64_t OwnExperts() const {
    const ExpertFfn& unit = units_.units[served_.members.front()];
    const int64_t entries = unit.down.weight.tensor.size(0);
    if (unit.down.weight.at) return entries < served_.total && HasIdentityBeside(unit.down.weight) ? entries : served_.total;
    int64_t own = served_.total;
    while (own > 0 && IsIdentityExpert(own - 1)) --own;
    return own;
  }

  bool IsIdentityExpert(int64_t e) const {
    const auto module = served_.unit_of_expert[e] < 0 ? FindAttribute(self_, PathOf(e)) : std::nullopt;
    return module && IsTorchIdentity(*module);
  }

  bool HasIdentityBeside(const Weight& weight) const {
    const auto holder = FindAttribute(self_, weight.name.substr(0, weight.name.find_last_of('.') + 1));
    if (!holder || !holder->isObject()) return false;
    const auto& slots = holder->toObject()->slots();
    return std::any_of(slots.begin(), slots.end(), IsTorchIdentity);
  }

  std::string PathOf(int64_t number) const { return NumberedPath(served_.pattern, number); }

  std::string CompareModules(int64_t held, int64_t e) const {
    const auto known = FindAttribute(self_, PathOf(held));
    const auto other = FindAttribute(self_, PathOf(e));
    if (!known || !other) return fmt::format("there is no {}", PathOf(e));
    if (!known->isObject() || !other->isObject()) {
      return fmt::format("{} is no module of its own, so nothing says that a trace left it out", PathOf(e));
    }
    // A trace gives code to what it ran alone; a script has all code, and leaves out what its author left out.
    if (HasCode(*other->toObject())) {
      return fmt::format("{} has code, so it was not a trace that left it out", PathOf(e));
    }
    const std::string difference = Difference(*known, *other, "");
    if (difference.empty()) return "";
    return fmt::format("{} differs from {}, which the graph holds: {}", PathOf(e), PathOf(held), Printable(difference));
  }

  // Another entry of the same stacked tensors.
  static void PointAt(ExpertFfn& expert, int64_t e) {
    const auto both = [&](Projection& projection) {
      projection.weight.at = e;
      if (projection.bias) projection.bias->at = e;
    };
    both(expert.down);
    both(expert.up.projection);
    if (expert.gate) both(expert.gate->projection);
  }

  std::string Redirect(ExpertFfn& expert, int64_t e) const {
    std::string failure;
    const auto redirect = [&](Weight& weight) {
      int64_t number = -1;
      const std::string name = NumberedName(NumberedPattern(self_, weight.name, served_.total, &number), e);
      const auto found = FindAttribute(self_, name);
      if (!found || !found->isTensor() || !found->toTensor().defined() || found->toTensor().sizes() != weight.tensor.sizes() ||
          found->toTensor().scalar_type() != weight.tensor.scalar_type()) {
        failure = fmt::format("{} must be a tensor like {}", name, weight.name);
        return;
      }
      weight.name = name;
      weight.tensor = found->toTensor();
    };
    const auto both = [&](Projection& projection) {
      redirect(projection.weight);
      if (projection.bias) redirect(*projection.bias);
    };
    both(expert.down);
    both(expert.up.projection);
    if (expert.gate) both(expert.gate->projection);
    return failure;
  }

  const Module& self_;
  const ServedExperts& served_;
  const ExpertUnits& units_;
  const WeightFinder& weights_;
};

}  // namespace

AllExperts CollectExperts(const Module& self, const ServedExperts& served, const ExpertUnits& units, const WeightFinder& weights) {
  return Collector(self, served, units, weights).Collect();
}

}  // namespace autoep

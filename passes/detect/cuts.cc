// SPDX-License-Identifier: Apache-2.0
// Pairs of ids and weights; a table of weights [T, E], mostly zeros; a mask [T, E] and weights.
#include "passes/detect/cuts.h"

#include "passes/detect/support.h"
#include "passes/detect/weights_value.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

constexpr int kMostMasks = 4;  // a router's mask, and casts of it

class CutFinder {
 public:
  CutFinder(const SumCandidate& candidate, const Router& router, const GraphFlow& flow, const ExpertUnits& units,
            const std::set<int>& steps, const ShapeTable& shapes, const Tokens& seen)
      : candidate_(candidate), router_(router), flow_(flow), units_(units), steps_(steps), shapes_(shapes), seen_(seen) {}

  std::vector<Cut> Find() {
    if (router_.ids) {
      AddPairs();
    } else {
      AddTables();
      AddMasks();
    }
    return std::move(cuts_);
  }

 private:
  struct Seen {
    RowShape rows;
    at::ScalarType dtype;
  };

  std::optional<Seen> See(const Value* value) const {
    const auto shape = shapes_.find(value);
    const auto rows = shape == shapes_.end() ? std::nullopt : ParseRowShape(shape->second.sizes, seen_);
    if (!rows) return std::nullopt;
    return Seen{*rows, shape->second.dtype};
  }

  // A truth, or numbers 0 and 1: one_hot, and products of masks.
  bool IsMask(const Value* value) const {
    const auto shape = shapes_.find(value);
    if (shape == shapes_.end()) return false;
    if (shape->second.dtype == at::kBool) return true;
    const Node* node = value->node();
    if (!flow_.Writers(flow_.RootOf(value)).empty() || node->inputs().empty()) return false;
    if (node->kind() == aten::mul) return IsMask(node->input(0)) && IsMask(node->input(1));
    const bool keeps = node->kind() == aten::view || node->kind() == aten::reshape || node->kind() == aten::to;
    return node->kind() == aten::one_hot || (keeps && IsMask(node->input(0)));
  }

  std::vector<Value*> Weights(const Value* choice) const {
    return FindWeightsCandidates(candidate_.value, candidate_.step, router_, choice, flow_, units_, steps_);
  }

  void AddPairs() {
    const auto ids = See(router_.ids);
    if (!ids || ids->dtype != at::kLong) return;
    const int64_t k = std::max<int64_t>(ids->rows.columns, 1);
    for (Value* value : Weights(router_.ids)) {
      const auto weights = See(value);
      if (!weights || !at::isFloatingType(weights->dtype) || std::max<int64_t>(weights->rows.columns, 1) != k) continue;
      cuts_.push_back({Routing::kPairs, router_.ids, value, ids->rows, weights->rows, ids->dtype, weights->dtype, k, nullptr});
    }
  }

  void AddTables() {
    for (Value* value : Weights(nullptr)) {
      const auto weights = See(value);
      if (!weights || !at::isFloatingType(weights->dtype) || weights->rows.columns != router_.num_experts) continue;
      const auto support = FindSupport(value, candidate_.step + 1, flow_, shapes_);
      if (!support || support->most > router_.num_experts) continue;
      cuts_.push_back({Routing::kTable, nullptr, value, {}, weights->rows, at::kLong, weights->dtype, support->most, support->ids});
    }
  }

  void AddMasks() {
    int masks = 0;
    for (auto step = steps_.rbegin(); step != steps_.rend() && masks < kMostMasks; ++step) {
      for (Value* value : flow_.NodeAt(*step)->outputs()) {
        const auto mask = See(value);
        if (!mask || mask->rows.columns != router_.num_experts || !IsMask(value)) continue;
        const auto support = FindSupport(value, candidate_.step + 1, flow_, shapes_);
        if (!support || support->most > router_.num_experts) continue;
        ++masks;
        for (Value* factor : Weights(value)) {
          const auto weights = See(factor);
          if (!weights || !at::isFloatingType(weights->dtype)) continue;
          if (weights->rows.columns > 1 && weights->rows.columns != router_.num_experts) continue;
          cuts_.push_back({Routing::kMask, value, factor, mask->rows, weights->rows, mask->dtype, weights->dtype, support->most,
                           support->ids});
        }
      }
    }
  }

  const SumCandidate& candidate_;
  const Router& router_;
  const GraphFlow& flow_;
  const ExpertUnits& units_;
  const std::set<int>& steps_;
  const ShapeTable& shapes_;
  const Tokens seen_;
  std::vector<Cut> cuts_;
};

}  // namespace

std::vector<Cut> FindCuts(const SumCandidate& candidate, const Router& router, const GraphFlow& flow, const ExpertUnits& units,
                          const std::set<int>& steps, const ShapeTable& shapes, const Tokens& seen) {
  return CutFinder(candidate, router, flow, units, steps, shapes, seen).Find();
}

}  // namespace autoep

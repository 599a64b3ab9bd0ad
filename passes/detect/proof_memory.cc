// SPDX-License-Identifier: Apache-2.0
// Keys, and answers by place.
#include "passes/detect/proof_memory.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "passes/detect/graph_text.h"

namespace autoep {

using torch::jit::Value;

namespace {

class Key {
 public:
  explicit Key(const GraphFlow& flow) : flow_(flow) {}

  template <typename... Parts>
  Key& Add(Parts... parts) {
    ((text_ += fmt::format("{} ", parts)), ...);
    return *this;
  }
  template <typename Numbers>
  Key& AddAll(const Numbers& numbers) {
    text_ += fmt::format("[{}] ", fmt::join(numbers, ","));
    return *this;
  }

  Key& AddValues(const std::vector<const Value*>& values) {
    for (const Value* value : values) value ? Add(flow_.StepOf(value), value->offset()) : Add("none");
    return *this;
  }

  Key& AddRows(const RowShape& rows, at::ScalarType dtype) { return Add(rows.batched, rows.columns, static_cast<int>(dtype)); }

  Key& AddStage(const Stage& stage) {
    const Router& router = *stage.router;
    Add(flow_.StepOf(router.gate), flow_.StepOf(router.choice), router.num_experts, router.logits, static_cast<int>(router.gate_dtype));
    Add(stage.root_rank, stage.hidden, static_cast<int>(stage.dtype), stage.choices, stage.tokens.batch, stage.tokens.length);
    return AddValues({router.ids, router.input, stage.root});
  }

  Key& AddClaim(const Claim& claim) {
    const Cut& cut = claim.cut;
    AddStage(claim.stage).AddAll(claim.steps).AddAll(claim.units);
    AddValues({claim.tokens, claim.out, cut.choice, cut.weights, cut.ids});
    AddRows(cut.choice_rows, cut.choice_dtype).AddRows(cut.weights_rows, cut.weights_dtype);
    for (const ShapeGiven& given : claim.shapes) AddValues({given.value}).AddRows(given.rows, given.dtype);
    return Add(static_cast<int>(cut.routing), cut.top_k, claim.weights_on_input, claim.negative_weights);
  }

  const std::string& text() const { return text_; }

 private:
  const GraphFlow& flow_;
  std::string text_;
};

template <typename Answer, typename Evaluate>
const Answer& Remember(std::map<std::string, Remembered<Answer>>& known, const std::string& key, Evaluate evaluate) {
  const auto [at, fresh] = known.try_emplace(key);
  Remembered<Answer>& found = at->second;
  if (fresh) {
    try {
      found.answer = evaluate();
    } catch (const c10::Error& error) {
      found.error = error.what_without_backtrace();
    } catch (const std::exception& error) {
      found.error = error.what();
    }
  }
  TORCH_CHECK(found.error.empty(), found.error);
  return found.answer;
}

}  // namespace

ProofMemory::Answers* Proofs::Known(const Stage& stage) const {
  if (!memory_ || stage.served) return nullptr;
  if (!known_) known_ = &memory_->Of(GraphText(graph_, self_));
  return known_;
}

ShapeTable Proofs::InferShapes(const Stage& stage, const std::set<int>& steps) const {
  ProofMemory::Answers* known = Known(stage);
  if (!known) return autoep::InferShapes(stage, flow_, steps);
  const auto evaluate = [&] {
    std::vector<std::pair<std::pair<int, size_t>, Shape>> places;
    for (const auto& [value, shape] : autoep::InferShapes(stage, flow_, steps)) {
      places.push_back({{flow_.StepOf(value), value->offset()}, shape});
    }
    return places;
  };
  ShapeTable shapes;
  for (const auto& [place, shape] : Remember(known->shapes, Key(flow_).AddStage(stage).AddAll(steps).text(), evaluate)) {
    const auto [step, offset] = place;
    shapes[step < 0 ? graph_.inputs()[offset] : flow_.NodeAt(step)->outputs()[offset]] = shape;
  }
  return shapes;
}

std::vector<int> Proofs::FindUnitOfExpert(const Claim& claim) const {
  const auto evaluate = [&] { return autoep::FindUnitOfExpert(claim, flow_); };
  ProofMemory::Answers* known = Known(claim.stage);
  return known ? Remember(known->units, Key(flow_).AddClaim(claim).text(), evaluate) : evaluate();
}

std::string Proofs::CheckClaim(const Claim& claim, const std::vector<int>& unit_of_expert) const {
  const auto evaluate = [&] { return autoep::CheckClaim(claim, flow_, unit_of_expert); };
  ProofMemory::Answers* known = Known(claim.stage);
  return known ? Remember(known->claims, Key(flow_).AddClaim(claim).AddAll(unit_of_expert).text(), evaluate) : evaluate();
}

}  // namespace autoep

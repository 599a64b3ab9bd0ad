// SPDX-License-Identifier: Apache-2.0
// A region run on small tensors.
#include "passes/detect/proof.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <tuple>
#include <utility>

#include "passes/detect/ir.h"
#include "passes/detect/trials.h"
#include "passes/detect/turns.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Stack;
using torch::jit::Value;
namespace aten = c10::aten;
namespace prim = c10::prim;

namespace {

// a and b of every unit, or of every expert of the stacked one.
struct Answers {
  std::vector<int64_t> a, b;
};

at::Tensor Affine(const at::Tensor& rows, const at::Tensor& experts, const Answers& answers) {
  const int64_t count = static_cast<int64_t>(answers.a.size());
  const at::Tensor ids = experts.contiguous();
  TORCH_CHECK(ids.numel() == 0 || (ids.min().item().toLong() >= 0 && ids.max().item().toLong() < count), "no such expert");
  std::vector<int64_t> a, b;
  for (int64_t i = 0; i < ids.numel(); ++i) {
    a.push_back(answers.a[ids.data_ptr<int64_t>()[i]]);
    b.push_back(answers.b[ids.data_ptr<int64_t>()[i]]);
  }
  const auto column = [&](const std::vector<int64_t>& numbers) {
    at::Tensor tensor = at::empty(ids.sizes(), at::kLong);
    std::copy(numbers.begin(), numbers.end(), tensor.data_ptr<int64_t>());
    return tensor.to(rows.scalar_type()).unsqueeze(-1);
  };
  return rows * column(a) + column(b);
}

at::Tensor ExpertsOfCounts(const at::Tensor& rows, const std::vector<int64_t>& counts) {
  std::vector<int64_t> experts;
  for (size_t e = 0; e < counts.size(); ++e) experts.insert(experts.end(), counts[e], static_cast<int64_t>(e));
  TORCH_CHECK(rows.dim() == 2 && rows.size(0) == static_cast<int64_t>(experts.size()), "the rows do not fit the constant sizes");
  return ToTensor(experts);
}

// Biases are gathered by the experts that the rows meet.
void CheckBiasChoices(const ExpertFfn& unit, const at::Tensor& experts, Interpreter& run) {
  for (const Half* half : {&unit.up, unit.gate ? &*unit.gate : nullptr}) {
    const Value* ids = half ? half->projection.bias_choice : nullptr;
    TORCH_CHECK(!ids || run.Get(ids).toTensor().equal(experts), "a row gets the bias of another expert");
  }
  const Value* ids = unit.down.bias_choice;
  TORCH_CHECK(!ids || run.Get(ids).toTensor().equal(experts), "a row gets the bias of another expert");
}

// Rows of a dense product, and their experts, in the shape of what it answers.
std::pair<at::Tensor, at::Tensor> SpreadRows(const ExpertFfn& unit, at::Tensor rows) {
  const Projection& up = unit.up.projection;
  const int64_t experts = up.weight.tensor.size(0);
  const int64_t dim = unit.down.out_expert_dim;
  if (up.rows_expert_dim < 0) {
    rows = rows.unsqueeze(dim);
  } else if (rows.dim() == 2) {
    rows = rows.unsqueeze(0);
  } else {
    rows = rows.movedim(up.rows_expert_dim, dim);
  }
  std::vector<int64_t> sizes = rows.sizes().vec();
  TORCH_CHECK(dim < rows.dim() - 1 && (sizes[dim] == experts || sizes[dim] == 1), "rows do not fit the experts");
  sizes[dim] = experts;
  rows = rows.expand(sizes);
  std::vector<int64_t> column(sizes.size() - 1, 1);
  column[dim] = experts;
  sizes.pop_back();
  return {rows, at::arange(experts).view(column).expand(sizes)};
}

// The entry of a stacked weight that an index chooses.
int64_t EntryAt(const c10::IValue& index) {
  if (!index.isTensor()) return index.toInt();
  const at::Tensor tensor = index.toTensor();
  TORCH_CHECK(tensor.dim() == 0 && tensor.scalar_type() == at::kLong, "an expert's weights must be chosen by one number");
  return tensor.item().toLong();
}

Interpreter::Stands MakeStands(const Stage& stage, const std::shared_ptr<Answers>& answers) {
  Interpreter::Stands stands;
  // The sizes of a weight may be read.
  for (const Node* node : stage.units->inner) {
    if (node->kind() != prim::GetAttr) stands[node] = nullptr;
  }
  for (const auto& [node, index] : stage.units->by_output) {
    const ExpertFfn* unit = &stage.units->units[index];
    stands[node] = [unit, expert = stage.units->expert[index], answers](Interpreter& run, Node* at) {
      at::Tensor rows = run.Get(unit->rows).toTensor();
      TORCH_CHECK(rows.dim() >= 1 && rows.size(-1) == unit->up.projection.in(), "rows do not fit the expert");
      TORCH_CHECK(rows.scalar_type() == unit->dtype(), "rows are of another dtype than the expert");
      at::Tensor experts;
      if (!unit->down.counts.empty()) {
        experts = ExpertsOfCounts(rows, unit->down.counts);
      } else if (unit->dense()) {
        std::tie(rows, experts) = SpreadRows(*unit, rows);
      } else if (unit->form().stacked) {
        experts = unit->form().experts_of_rows(rows, run.Get(unit->down.choice).toTensor());
        CheckBiasChoices(*unit, experts, run);
      } else {
        const Value* selected = unit->down.weight.selected;
        experts = at::full(rows.sizes().slice(0, rows.dim() - 1), selected ? EntryAt(run.Get(selected)) : expert, at::kLong);
      }
      run.Set(at->output(), Affine(rows, experts, *answers));
    };
  }
  return stands;
}

std::vector<int64_t> Sizes(const Tokens& tokens, int rank, int64_t last) {
  if (rank == 3) return {tokens.batch, tokens.length, last};
  return {tokens.count(), last};
}

void RunSteps(Interpreter& run, const GraphFlow& flow, const std::set<int>& steps) {
  for (const int step : steps) run.Run(flow.NodeAt(step));
}

// Logits of which a router takes the chosen experts, in their order.
at::Tensor PreferChosen(at::Tensor logits, const std::vector<int64_t>& ids, int64_t choices) {
  const at::Tensor rows = logits.view({-1, logits.size(-1)});
  for (int64_t i = 0; i < static_cast<int64_t>(ids.size()); ++i) {
    rows.select(0, i / choices).select(0, ids[i]).fill_(16.0 + static_cast<double>(choices - i % choices));
  }
  return logits;
}

}  // namespace

ShapeTable InferShapes(const Stage& stage, const GraphFlow& flow, const std::set<int>& steps) {
  const at::NoGradGuard no_grad;
  auto answers = std::make_shared<Answers>();
  const size_t experts = std::max<size_t>(stage.units->units.size(), stage.router->num_experts);
  answers->a.assign(experts, 1);
  answers->b.assign(experts, 0);
  Interpreter::Stands stands = MakeStands(stage, answers);
  Numbers numbers(7);
  std::mt19937 random(11);
  std::optional<ServedChoice> choice;
  if (stage.served) choice = MakeServedChoice(*stage.served, stage.choices, kShapeTokens.count(), random);
  const Tokens tokens = stage.tokens;
  stands[stage.router->gate] = [&](Interpreter& run, Node* gate) {
    std::vector<int64_t> sizes = {tokens.count(), stage.router->logits};
    at::ScalarType dtype = stage.router->gate_dtype;
    if (run.Has(stage.router->input)) {
      const at::Tensor input = run.Get(stage.router->input).toTensor();
      sizes = input.sizes().vec();
      sizes.back() = stage.router->logits;
      dtype = input.scalar_type();
    }
    at::Tensor logits = numbers.Tensor(sizes, -8, 8);
    if (choice && !stage.router->ids) logits = PreferChosen(std::move(logits), choice->ids, stage.choices);
    run.Set(gate->output(), logits.to(dtype));
  };
  Interpreter run(*stage.self, *stage.graph, stands);
  run.Set(stage.root, numbers.Tensor(Sizes(tokens, stage.root_rank, stage.hidden), -2, 2).to(stage.dtype));
  for (const int step : steps) {
    Node* node = flow.NodeAt(step);
    run.Run(node);
    if (choice && stage.router->ids && node == stage.router->ids->node())
      run.Set(stage.router->ids, ToTensor(choice->ids).view_as(run.Get(stage.router->ids).toTensor()));
  }
  ShapeTable shapes;
  const auto see = [&](const Value* value) {
    if (!run.Has(value)) return;
    const c10::IValue got = run.Get(value);
    if (got.isTensor() && got.toTensor().defined()) shapes[value] = {got.toTensor().sizes().vec(), got.toTensor().scalar_type()};
  };
  see(stage.root);
  for (const int step : steps) {
    for (const Value* output : flow.NodeAt(step)->outputs()) see(output);
  }
  return shapes;
}

namespace {

at::Tensor ToTable(const Trial& trial, const at::Tensor& entries, at::Tensor table) {
  return table.scatter(1, ToTensor(trial.ids).view(entries.sizes()), entries);
}

// What stands for the router's choice and weights.
void SetCut(const Claim& claim, const Trial& trial, Interpreter& run) {
  const Cut& cut = claim.cut;
  const int64_t t = trial.tokens.count();
  const int64_t experts = claim.stage.router->num_experts;
  at::Tensor choice = ToTensor(trial.ids).view({t, cut.top_k});
  at::Tensor weights = trial.weights;
  if (cut.routing == Routing::kTable) weights = ToTable(trial, weights * trial.kept, at::zeros({t, experts}));
  if (cut.routing == Routing::kMask) {
    choice = ToTable(trial, trial.kept, at::zeros({t, experts}));
    // The weights of experts that are not chosen mean nothing.
    weights = cut.weights_rows.columns > 1 ? ToTable(trial, weights, at::full({t, experts}, 5.0)) : weights.select(1, 0);
  }
  if (cut.choice) run.Set(cut.choice, choice.reshape(cut.choice_rows.Sizes(trial.tokens)).to(cut.choice_dtype, false, true));
  run.Set(cut.weights, weights.reshape(cut.weights_rows.Sizes(trial.tokens)).to(cut.weights_dtype, false, true));
}

// The region's `out`, as [rows, H] float.
at::Tensor Run(const Claim& claim, const GraphFlow& flow, const Trial& trial, const std::shared_ptr<Answers>& answers,
               Turns* turns = nullptr) {
  const at::NoGradGuard no_grad;
  const Stage& stage = claim.stage;
  const Interpreter::Stands stands = MakeStands(stage, answers);
  Interpreter run(*stage.self, *stage.graph, stands);
  if (turns)
    run.SetWatch([turns](const Node* node, const Stack& inputs, const Stack& outputs) { turns->See(node, inputs, outputs); });
  run.Set(stage.root, trial.x.view(Sizes(trial.tokens, stage.root_rank, stage.hidden)).to(stage.dtype));
  SetCut(claim, trial, run);
  for (const ShapeGiven& given : claim.shapes) {
    run.Set(given.value, at::empty(given.rows.Sizes(trial.tokens), at::TensorOptions().dtype(given.dtype)));
  }
  RunSteps(run, flow, claim.steps);
  const at::Tensor out = run.Get(claim.out).toTensor();
  const at::Tensor tokens = run.Get(claim.tokens).toTensor();
  TORCH_CHECK(out.sizes() == tokens.sizes(), "the sum has another shape than the tokens");
  return out.to(at::kFloat).reshape({trial.tokens.count(), stage.hidden});
}

at::Tensor Expected(const Claim& claim, const Trial& trial, Answers answers, const std::vector<int>& unit_of_expert) {
  const int64_t identity = static_cast<int64_t>(answers.a.size());
  answers.a.push_back(1);
  answers.b.push_back(0);
  const auto unit_of = [&](int64_t id) -> int64_t {
    if (unit_of_expert.empty()) return id;
    return unit_of_expert[id] == kIdentity ? identity : unit_of_expert[id];
  };
  std::vector<int64_t> answering;
  for (const int64_t id : trial.ids) answering.push_back(unit_of(id));
  at::Tensor sum = at::zeros_like(trial.x);
  const at::Tensor experts = ToTensor(answering).view({trial.tokens.count(), claim.cut.top_k});
  const at::Tensor weights = trial.weights * trial.kept;
  for (int64_t k = 0; k < claim.cut.top_k; ++k) {
    const at::Tensor weight = weights.select(1, k).unsqueeze(-1);
    if (claim.weights_on_input) {
      sum += Affine(trial.x * weight, experts.select(1, k), answers);
    } else {
      sum += weight * Affine(trial.x, experts.select(1, k), answers);
    }
  }
  // With weights on the input of all experts, those that are not chosen read rows of zeros.
  if (claim.weights_on_input && claim.cut.routing == Routing::kTable) {
    int64_t all = 0;
    for (int64_t e = 0; e < claim.stage.router->num_experts; ++e) all += answers.b[unit_of(e)];
    sum += static_cast<double>(all);
    for (int64_t k = 0; k < claim.cut.top_k; ++k) sum -= Affine(at::zeros_like(trial.x), experts.select(1, k), answers);
  }
  return sum;
}

std::shared_ptr<Answers> RandomAnswers(size_t count, Numbers& numbers) {
  auto answers = std::make_shared<Answers>();
  for (size_t i = 0; i < count; ++i) {
    // No zeros: no answer may go unseen.
    const auto next = [&] { return numbers.Next(1, 2) * (numbers.Next(0, 1) * 2 - 1); };
    answers->a.push_back(next());
    answers->b.push_back(next());
  }
  return answers;
}

size_t AnswerCount(const Claim& claim) {
  return std::max<size_t>(claim.stage.units->units.size(), claim.stage.router->num_experts);
}

}  // namespace

std::vector<int> FindUnitOfExpert(const Claim& claim, const GraphFlow& flow) {
  constexpr int64_t kBase = 16;
  constexpr double kToken = 100;  // no digit
  const int64_t experts = claim.stage.router->num_experts;
  const Tokens tokens{2, (experts + 1) / 2};
  const int64_t t = tokens.count(), k = claim.cut.top_k;
  Trial trial{tokens, RotatedIds(t, k, experts), at::zeros({t, k}), at::ones({t, k}),
              at::full({t, claim.stage.hidden}, claim.weights_on_input ? 1.0 : kToken)};
  trial.weights.select(1, 0).fill_(1.0);
  trial.kept.slice(1, 1).zero_();
  std::vector<int> found(experts, kNoUnit);
  int64_t place = 1;
  // Digit by digit, so that the numbers stay small enough for bfloat16; a digit of 0 is answered as 1, none as 0.
  for (size_t digits = claim.stage.units->units.size(); digits > 0; digits /= kBase, place *= kBase) {
    auto answers = std::make_shared<Answers>();
    for (size_t unit = 0; unit < AnswerCount(claim); ++unit) {
      const int64_t digit = static_cast<int64_t>(unit) / place % kBase + 1;
      answers->a.push_back(claim.weights_on_input ? digit : 0);
      answers->b.push_back(claim.weights_on_input ? 0 : digit);
    }
    const at::Tensor out = Run(claim, flow, trial, answers).contiguous();
    for (int64_t e = 0; e < experts; ++e) {
      const double answer = out.data_ptr<float>()[e * claim.stage.hidden];
      if (answer == kToken) found[e] = kIdentity;
      const int64_t digit = static_cast<int64_t>(std::lround(answer)) - 1;
      if (answer != 0 && answer != kToken && (digit < 0 || digit >= kBase)) found[e] = kOther;
      if (digit < 0 || digit >= kBase || found[e] == kOther) continue;
      found[e] = static_cast<int>((place == 1 ? 0 : std::max(found[e], 0)) + digit * place);
    }
  }
  return found;
}

namespace {

class ClaimCheck {
 public:
  ClaimCheck(const Claim& claim, const GraphFlow& flow, const std::vector<int>& unit_of_expert)
      : claim_(claim), flow_(flow), unit_of_expert_(unit_of_expert) {}

  // Empty if the claim holds.
  std::string Check() {
    const int64_t limit = LargestLimit(claim_, flow_);
    if (limit > kLargestLimit) return fmt::format("the number {} in the region may be a limit that no trial reaches", limit - 1);
    for (const Trial& trial : MakeTrials(claim_, limit, numbers_)) {
      if (!Agrees(trial, all_)) return difference_;
    }
    const int64_t many = std::max<int64_t>(limit, 4) + 2;
    if (!CheckMoreTokens(many, Crowd::kOneRow)) return difference_;
    if (claim_.stage.root_rank == 3 && !CheckMoreTokens(many, Crowd::kManyRows)) return difference_;
    // Where each expert has nodes of its own.
    if (claim_.units.size() > 1 && !CheckMoreTokens(kFew, Crowd::kEveryExpert)) return difference_;
    if (const Node* missed = all_.Missed()) Untried(missed);
    return difference_;
  }

 private:
  static constexpr int64_t kLargestLimit = 1 << 13;
  static constexpr int64_t kMostElements = 1 << 26;
  static constexpr int64_t kFew = 4;

  // More and more tokens, until that brings no op nearer to where its answer turns.
  bool CheckMoreTokens(int64_t tokens, Crowd crowd) {
    if (!MakeCrowd(claim_, tokens, crowd)) return true;
    Turns crowds;
    if (!Agrees(*MakeCrowd(claim_, tokens, crowd), crowds)) return false;
    while (true) {
      const Turns before = crowds;
      tokens *= 2;
      const Trial trial = *MakeCrowd(claim_, tokens, crowd);
      if (!Agrees(trial, crowds)) return false;
      const Node* approached = crowds.Approached(before);
      if (!approached) return true;
      if (tokens > kLargestLimit || trial.x.numel() > kMostElements) return Untried(approached);
    }
  }

  bool Untried(const Node* node) {
    difference_ = fmt::format("a number in the region may be a limit that no trial reaches: {}", NodeText(node));
    return false;
  }

  bool Agrees(const Trial& trial, Turns& turns) {
    ++trials_;
    const auto answers = RandomAnswers(AnswerCount(claim_), numbers_);
    const at::Tensor got = Run(claim_, flow_, trial, answers, &turns);
    if (&turns != &all_) all_.Add(turns);
    if (got.equal(Expected(claim_, trial, *answers, unit_of_expert_))) return true;
    difference_ = fmt::format("on {} tokens (trial {}) the sum is not that of the chosen experts' outputs times their weights",
                              trial.tokens.count(), trials_);
    return false;
  }

  const Claim& claim_;
  const GraphFlow& flow_;
  const std::vector<int>& unit_of_expert_;
  Numbers numbers_{20};
  Turns all_;
  int trials_ = 0;
  std::string difference_;
};

}  // namespace

std::string CheckClaim(const Claim& claim, const GraphFlow& flow, const std::vector<int>& unit_of_expert) {
  return ClaimCheck(claim, flow, unit_of_expert).Check();
}

}  // namespace autoep

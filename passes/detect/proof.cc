// SPDX-License-Identifier: Apache-2.0
// Trials of a claim on small tensors.
#include "passes/detect/proof.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;

namespace {

// a and b of every unit, or of every expert of the stacked one.
struct Answers {
  std::vector<int64_t> a, b;
};

at::Tensor ToTensor(const std::vector<int64_t>& numbers) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(numbers.size())}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

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

Interpreter::Stands MakeStands(const Stage& stage, const std::shared_ptr<Answers>& answers) {
  Interpreter::Stands stands;
  for (const Node* node : stage.units->inner) stands[node] = nullptr;
  for (const auto& [node, index] : stage.units->by_output) {
    const ExpertFfn* unit = &stage.units->units[index];
    stands[node] = [unit, expert = stage.units->expert[index], answers](Interpreter& run, Node* at) {
      const at::Tensor rows = run.Get(unit->rows).toTensor();
      TORCH_CHECK(rows.dim() >= 1 && rows.size(-1) == unit->up.projection.in(), "rows do not fit the expert");
      TORCH_CHECK(rows.scalar_type() == unit->dtype(), "rows are of another dtype than the expert");
      at::Tensor experts;
      if (!unit->down.counts.empty()) {
        experts = ExpertsOfCounts(rows, unit->down.counts);
      } else if (unit->form().stacked) {
        experts = unit->form().experts_of_rows(rows, run.Get(unit->down.choice).toTensor());
      } else {
        const Value* selected = unit->down.weight.selected;
        experts = at::full(rows.sizes().slice(0, rows.dim() - 1), selected ? run.Get(selected).toInt() : expert, at::kLong);
      }
      run.Set(at->output(), Affine(rows, experts, *answers));
    };
  }
  return stands;
}

// Small deterministic numbers.
class Numbers {
 public:
  explicit Numbers(unsigned seed) : engine_(seed) {}
  int64_t Next(int64_t low, int64_t high) { return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1)); }
  at::Tensor Tensor(at::IntArrayRef sizes, int64_t low, int64_t high) {
    at::Tensor tensor = at::empty(sizes, at::kFloat);
    float* data = tensor.data_ptr<float>();
    for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = static_cast<float>(Next(low, high));
    return tensor;
  }

 private:
  std::mt19937 engine_;
};

struct Tokens {
  int64_t batch;
  int64_t length;
  int64_t count() const { return batch * length; }
};

std::vector<int64_t> Sizes(const Tokens& tokens, int rank, int64_t last) {
  if (rank == 3) return {tokens.batch, tokens.length, last};
  return {tokens.count(), last};
}

void RunSteps(Interpreter& run, const GraphFlow& flow, const std::set<int>& steps) {
  for (const int step : steps) run.Run(flow.NodeAt(step));
}

}  // namespace

std::unordered_map<const Value*, Shape> InferShapes(const Stage& stage, const GraphFlow& flow, const std::set<int>& steps,
                                                    const std::vector<Value*>& wanted) {
  const at::NoGradGuard no_grad;
  auto answers = std::make_shared<Answers>();
  const size_t experts = std::max<size_t>(stage.units->units.size(), stage.router->num_experts);
  answers->a.assign(experts, 1);
  answers->b.assign(experts, 0);
  Interpreter::Stands stands = MakeStands(stage, answers);
  Numbers numbers(7);
  std::mt19937 random(11);
  std::optional<ServedChoice> choice;
  if (stage.served) {
    const auto top_k = ConstInt(stage.router->topk->input(1));
    TORCH_CHECK(top_k, "the number of experts a token must be a constant");
    choice = MakeServedChoice(*stage.served, *top_k, 6, random);
  }
  const Tokens tokens = choice ? Tokens{choice->batch, choice->length} : Tokens{2, 3};
  stands[stage.router->gate] = [&](Interpreter& run, Node* gate) {
    std::vector<int64_t> sizes = {tokens.count(), stage.router->num_experts};
    at::ScalarType dtype = stage.router->gate_dtype;
    if (run.Has(stage.router->input)) {
      const at::Tensor input = run.Get(stage.router->input).toTensor();
      sizes = input.sizes().vec();
      sizes.back() = stage.router->num_experts;
      dtype = input.scalar_type();
    }
    run.Set(gate->output(), numbers.Tensor(sizes, -8, 8).to(dtype));
  };
  Interpreter run(*stage.self, *stage.graph, stands);
  run.Set(stage.root, numbers.Tensor(Sizes(tokens, stage.root_rank, stage.hidden), -2, 2).to(stage.dtype));
  for (const int step : steps) {
    Node* node = flow.NodeAt(step);
    run.Run(node);
    if (choice && node == stage.router->ids->node())
      run.Set(stage.router->ids, ToTensor(choice->ids).view_as(run.Get(stage.router->ids).toTensor()));
  }
  std::unordered_map<const Value*, Shape> shapes;
  for (Value* value : wanted) {
    if (!run.Has(value)) continue;
    const c10::IValue got = run.Get(value);
    if (got.isTensor() && got.toTensor().defined()) shapes[value] = {got.toTensor().sizes().vec(), got.toTensor().scalar_type()};
  }
  return shapes;
}

namespace {

struct Trial {
  Tokens tokens;
  std::vector<int64_t> ids;  // [T, k]
  at::Tensor weights;        // [T, k], float
  at::Tensor x;              // [T, H], float
};

// The region's `out`, as [rows, H] float.
at::Tensor Run(const Claim& claim, const GraphFlow& flow, const Trial& trial, const std::shared_ptr<Answers>& answers) {
  const at::NoGradGuard no_grad;
  const Stage& stage = claim.stage;
  const Interpreter::Stands stands = MakeStands(stage, answers);
  Interpreter run(*stage.self, *stage.graph, stands);
  run.Set(stage.root, trial.x.view(Sizes(trial.tokens, stage.root_rank, stage.hidden)).to(stage.dtype));
  run.Set(claim.ids, ToTensor(trial.ids).view(Sizes(trial.tokens, claim.ids_rank, claim.top_k)));
  run.Set(claim.weights,
          trial.weights.view(Sizes(trial.tokens, claim.weights_rank, claim.top_k)).to(claim.weights_dtype, false, true));
  RunSteps(run, flow, claim.steps);
  const at::Tensor out = run.Get(claim.out).toTensor();
  const at::Tensor tokens = run.Get(claim.tokens).toTensor();
  TORCH_CHECK(out.sizes() == tokens.sizes(), "the sum has another shape than the tokens");
  return out.to(at::kFloat).reshape({trial.tokens.count(), stage.hidden});
}

at::Tensor Expected(const Claim& claim, const Trial& trial, const Answers& answers, const std::vector<int>& unit_of_expert) {
  std::vector<int64_t> answering;
  for (const int64_t id : trial.ids) answering.push_back(unit_of_expert.empty() ? id : unit_of_expert[id]);
  at::Tensor sum = at::zeros_like(trial.x);
  const at::Tensor experts = ToTensor(answering).view({trial.tokens.count(), claim.top_k});
  for (int64_t k = 0; k < claim.top_k; ++k) {
    sum += trial.weights.select(1, k).unsqueeze(-1) * Affine(trial.x, experts.select(1, k), answers);
  }
  return sum;
}

// Row t chooses t, t + stride, ... modulo E: every expert in every slot once T >= E.
std::vector<int64_t> RotatedIds(int64_t tokens, int64_t top_k, int64_t experts) {
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) ids.push_back((t + k) % experts);
  }
  return ids;
}

std::vector<int64_t> RandomIds(int64_t tokens, int64_t top_k, int64_t experts, Numbers& numbers) {
  std::vector<int64_t> all(experts), ids;
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) std::swap(all[k], all[numbers.Next(k, experts - 1)]);
    ids.insert(ids.end(), all.begin(), all.begin() + top_k);
  }
  return ids;
}

// Every ordered choice of k distinct experts, or none if there are more than `most`.
std::vector<int64_t> AllIds(int64_t top_k, int64_t experts, int64_t most) {
  int64_t count = 1;
  for (int64_t k = 0; k < top_k; ++k) {
    count *= experts - k;
    if (count > most) return {};
  }
  std::vector<int64_t> ids;
  std::vector<int64_t> row(top_k, 0);
  for (bool more = true; more;) {
    std::set<int64_t> distinct(row.begin(), row.end());
    if (static_cast<int64_t>(distinct.size()) == top_k) ids.insert(ids.end(), row.begin(), row.end());
    int64_t at = top_k - 1;
    while (at >= 0 && ++row[at] == experts) row[at--] = 0;
    more = at >= 0;
  }
  return ids;
}

std::vector<Trial> MakeTrials(const Claim& claim, Numbers& numbers) {
  const int64_t experts = claim.stage.router->num_experts;
  const int64_t k = claim.top_k;
  constexpr int64_t kMostChoices = 512;
  std::vector<Trial> trials;
  const auto add = [&](Tokens tokens, std::vector<int64_t> ids, int64_t least_weight, double scale) {
    const int64_t t = tokens.count();
    trials.push_back(
        {tokens, std::move(ids), numbers.Tensor({t, k}, least_weight, 3) * scale, numbers.Tensor({t, claim.stage.hidden}, -2, 2)});
  };
  const int64_t least = claim.negative_weights ? -2 : 0;
  if (claim.stage.served) {
    constexpr int kServedTrials = 10;
    std::mt19937 random(5);
    for (int trial = 0; trial < kServedTrials; ++trial) {
      ServedChoice choice = MakeServedChoice(*claim.stage.served, k, trial * trial, random);
      add({choice.batch, choice.length}, std::move(choice.ids), trial % 2 == 0 ? 1 : least, std::ldexp(1.0, -2 * trial));
    }
    return trials;
  }
  const int64_t half = (experts + 1) / 2;
  add({2, half}, RotatedIds(2 * half, k, experts), 1, 1.0);
  add({1, 1}, RandomIds(1, k, experts, numbers), 1, std::ldexp(1.0, -3));
  add({1, 5}, RandomIds(5, k, experts, numbers), 1, std::ldexp(1.0, -8));
  std::vector<int64_t> same;
  const std::vector<int64_t> one = RandomIds(1, k, experts, numbers);
  for (int t = 0; t < 6; ++t) same.insert(same.end(), one.begin(), one.end());
  add({3, 2}, same, 1, std::ldexp(1.0, -20));
  add({2, 4}, RandomIds(8, k, experts, numbers), least, 1.0);
  std::vector<int64_t> all = AllIds(k, experts, kMostChoices);
  const int64_t rows = static_cast<int64_t>(all.size()) / k;
  if (rows > 0) add({1, rows}, std::move(all), least, std::ldexp(1.0, -4));
  return trials;
}

std::shared_ptr<Answers> RandomAnswers(size_t count, Numbers& numbers) {
  auto answers = std::make_shared<Answers>();
  for (size_t i = 0; i < count; ++i) {
    answers->a.push_back(numbers.Next(-2, 2));
    answers->b.push_back(numbers.Next(-2, 2));
  }
  return answers;
}

size_t AnswerCount(const Claim& claim) {
  return std::max<size_t>(claim.stage.units->units.size(), claim.stage.router->num_experts);
}

}  // namespace

std::vector<int> FindUnitOfExpert(const Claim& claim, const GraphFlow& flow) {
  constexpr int64_t kBase = 16;
  const int64_t experts = claim.stage.router->num_experts;
  const Tokens tokens{2, (experts + 1) / 2};
  Trial trial{tokens, RotatedIds(tokens.count(), claim.top_k, experts), at::zeros({tokens.count(), claim.top_k}),
              at::ones({tokens.count(), claim.stage.hidden})};
  trial.weights.select(1, 0).fill_(1.0);
  std::vector<int> found(experts, -1);
  int64_t place = 1;
  // Digit by digit, so that the numbers stay small enough for bfloat16; a digit of 0 is answered as 1, none as 0.
  for (size_t digits = claim.stage.units->units.size(); digits > 0; digits /= kBase, place *= kBase) {
    auto answers = std::make_shared<Answers>();
    for (size_t unit = 0; unit < AnswerCount(claim); ++unit) {
      answers->a.push_back(0);
      answers->b.push_back(static_cast<int64_t>(unit) / place % kBase + 1);
    }
    const at::Tensor out = Run(claim, flow, trial, answers).contiguous();
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t digit = static_cast<int64_t>(std::lround(out.data_ptr<float>()[e * claim.stage.hidden])) - 1;
      if (digit < 0 || digit >= kBase) continue;
      found[e] = static_cast<int>((place == 1 ? 0 : std::max(found[e], 0)) + digit * place);
    }
  }
  return found;
}

std::string CheckClaim(const Claim& claim, const GraphFlow& flow, const std::vector<int>& unit_of_expert) {
  Numbers numbers(20);
  int number = 0;
  for (const Trial& trial : MakeTrials(claim, numbers)) {
    ++number;
    const auto answers = RandomAnswers(AnswerCount(claim), numbers);
    const at::Tensor got = Run(claim, flow, trial, answers);
    if (got.equal(Expected(claim, trial, *answers, unit_of_expert))) continue;
    return fmt::format("on {} tokens (trial {}) the sum is not that of the chosen experts' outputs times their weights",
                       trial.tokens.count(), number);
  }
  return "";
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Trials that cover every expert in every slot, and more tokens on one than any limit; of a baked loop, those it can serve.
#include "passes/detect/trials.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>

#include "passes/detect/ir.h"

namespace autoep {

using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

at::Tensor Numbers::Tensor(at::IntArrayRef sizes, int64_t low, int64_t high) {
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  float* data = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = static_cast<float>(Next(low, high));
  return tensor;
}

at::Tensor ToTensor(const std::vector<int64_t>& numbers) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(numbers.size())}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

std::vector<int64_t> RotatedIds(int64_t tokens, int64_t top_k, int64_t experts) {
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) ids.push_back((t + k) % experts);
  }
  return ids;
}

namespace {

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

// The largest of a constant's numbers, or of an attribute's.
int64_t LargestNumber(const Value* value, const torch::jit::Module& self) {
  std::vector<double> numbers;
  const auto constant = torch::jit::toIValue(value);
  const auto stored = constant ? std::nullopt : FindStored(self, value);
  const c10::IValue found = constant ? *constant : stored ? stored->value : c10::IValue();
  if (found.isScalar()) numbers.push_back(found.toScalar().toDouble());
  if (found.isIntList()) {
    for (const int64_t number : found.toIntVector()) numbers.push_back(static_cast<double>(number));
  }
  if (found.isTensor() && found.toTensor().defined() && found.toTensor().numel() > 0) {
    numbers.push_back(found.toTensor().to(at::kDouble).abs().max().item().toDouble());
  }
  int64_t largest = 0;
  for (const double number : numbers) {
    if (std::abs(number) < std::ldexp(1.0, 62)) largest = std::max(largest, static_cast<int64_t>(std::abs(number)) + 1);
  }
  return largest;
}

int64_t LargestLimit(const Node* node, const ExpertUnits& units, const torch::jit::Module& self) {
  static const std::set<c10::Symbol> kLimiting = {aten::__getitem__,
                                                  aten::lt,
                                                  aten::le,
                                                  aten::gt,
                                                  aten::ge,
                                                  aten::eq,
                                                  aten::ne,
                                                  aten::slice,
                                                  aten::narrow,
                                                  aten::arange,
                                                  aten::full,
                                                  aten::tensor,
                                                  c10::Symbol::fromQualString("aten::isin"),
                                                  c10::Symbol::fromQualString("aten::searchsorted"),
                                                  c10::Symbol::fromQualString("prim::min"),
                                                  c10::Symbol::fromQualString("prim::max")};
  int64_t largest = 0;
  if (units.inner.contains(node)) return largest;
  if (kLimiting.contains(node->kind())) {
    for (const Value* input : node->inputs()) largest = std::max(largest, LargestNumber(input, self));
  }
  for (const torch::jit::Block* block : node->blocks()) {
    for (const Node* inner : block->nodes()) largest = std::max(largest, LargestLimit(inner, units, self));
  }
  return largest;
}

// Drops no more than the graph can serve: the first choice of each expert stays.
void KeepServed(Trial& trial) {
  std::set<int64_t> met;
  for (size_t i = 0; i < trial.ids.size(); ++i) {
    if (met.insert(trial.ids[i]).second) trial.kept.view({-1}).select(0, static_cast<int64_t>(i)).fill_(1.0);
  }
}

Trial MakeTrial(const Claim& claim, Tokens tokens, std::vector<int64_t> ids, int64_t least_weight, double scale, Numbers& numbers) {
  const int64_t t = tokens.count(), k = claim.cut.top_k;
  // A weight on the input adds up with what the expert adds: one scale, to stay exact.
  if (claim.weights_on_input) scale = 1.0;
  Trial trial{tokens, std::move(ids), numbers.Tensor({t, k}, least_weight, 3) * scale, at::ones({t, k}),
              numbers.Tensor({t, claim.stage.hidden}, -2, 2)};
  const bool drops = claim.cut.routing != Routing::kPairs && least_weight <= 0;
  if (drops) trial.kept = numbers.Tensor({t, k}, 0, 1);
  if (drops && claim.stage.served) KeepServed(trial);
  // One weight a token.
  if (claim.cut.routing == Routing::kMask && claim.cut.weights_rows.columns <= 1) {
    trial.weights = trial.weights.select(1, 0).unsqueeze(-1).expand({t, k}).contiguous();
  }
  return trial;
}

}  // namespace

int64_t LargestLimit(const Claim& claim, const GraphFlow& flow) {
  int64_t largest = 0;
  const Stage& stage = claim.stage;
  for (const int step : claim.steps) largest = std::max(largest, LargestLimit(flow.NodeAt(step), *stage.units, *stage.self));
  return largest;
}

std::optional<Trial> MakeCrowd(const Claim& claim, int64_t tokens, Crowd crowd) {
  const ServedExperts* served = claim.stage.served;
  if (served && !served->rows.empty()) return std::nullopt;
  const int64_t experts = claim.stage.router->num_experts, k = claim.cut.top_k;
  const int64_t for_all = crowd == Crowd::kEveryExpert ? (tokens * experts + k - 1) / k : 1;
  Numbers numbers(30);
  std::mt19937 random(5);
  std::vector<int64_t> ids;
  if (served) {
    ids = MakeServedChoice(*served, k, for_all, random).ids;
  } else {
    ids = crowd == Crowd::kEveryExpert ? RotatedIds(for_all, k, experts) : RandomIds(1, k, experts, numbers);
  }
  const std::vector<int64_t> last(ids.end() - k, ids.end());
  for (int64_t t = 0; t < tokens && crowd != Crowd::kEveryExpert; ++t) ids.insert(ids.end(), last.begin(), last.end());
  const int64_t count = static_cast<int64_t>(ids.size()) / k;
  const Tokens shape = crowd == Crowd::kManyRows ? Tokens{count, 1} : Tokens{1, count};
  return MakeTrial(claim, shape, std::move(ids), 1, std::ldexp(1.0, -20), numbers);
}

std::vector<Trial> MakeTrials(const Claim& claim, int64_t limit, Numbers& numbers) {
  const int64_t experts = claim.stage.router->num_experts;
  const int64_t k = claim.cut.top_k;
  constexpr int64_t kMostChoices = 512;
  std::vector<Trial> trials;
  const auto add = [&](Tokens tokens, std::vector<int64_t> ids, int64_t least_weight, double scale) {
    trials.push_back(MakeTrial(claim, tokens, std::move(ids), least_weight, scale, numbers));
  };
  const int64_t least = claim.negative_weights ? -2 : 0;
  if (claim.stage.served) {
    constexpr int kServedTrials = 10;
    std::mt19937 random(5);
    for (int trial = 0; trial < kServedTrials; ++trial) {
      ServedChoice choice = MakeServedChoice(*claim.stage.served, k, trial * trial, random);
      add({choice.batch, choice.length}, std::move(choice.ids), trial % 2 == 0 ? 1 : least, std::ldexp(1.0, -2 * trial));
    }
    // More tokens on every expert than any number in the region, or, where those are too many, on one token's.
    constexpr int64_t kMostServedElements = int64_t{1} << 24;
    const int64_t wish = 2 * experts * (limit + 2);
    const bool all_experts = wish * claim.stage.hidden <= kMostServedElements;
    ServedChoice choice = MakeServedChoice(*claim.stage.served, k, all_experts ? wish : 1, random);
    if (!all_experts) {
      TORCH_CHECK(claim.stage.served->rows.empty(), "the number ", limit - 1,
                  " in the region may be a limit that no trial reaches");
      trials.push_back(*MakeCrowd(claim, limit + 2, Crowd::kOneRow));
      return trials;
    }
    add({choice.batch, choice.length}, std::move(choice.ids), 1, std::ldexp(1.0, -20));
    return trials;
  }
  const int64_t half = (experts + 1) / 2;
  add({2, half}, RotatedIds(2 * half, k, experts), 1, 1.0);
  add({1, 1}, RandomIds(1, k, experts, numbers), 1, std::ldexp(1.0, -3));
  add({1, 5}, RandomIds(5, k, experts, numbers), 1, std::ldexp(1.0, -8));
  std::vector<int64_t> same;
  const std::vector<int64_t> one = RandomIds(1, k, experts, numbers);
  // More tokens on one expert than any number in the region.
  const int64_t many = std::max<int64_t>(limit, 4) + 2;
  for (int64_t t = 0; t < many; ++t) same.insert(same.end(), one.begin(), one.end());
  add({1, many}, same, 1, std::ldexp(1.0, -20));
  // The same for every expert, where that is small enough.
  constexpr int64_t kMostElements = int64_t{1} << 22;
  if (limit > 2 && experts * many * claim.stage.hidden <= kMostElements) {
    add({1, experts * many}, RotatedIds(experts * many, k, experts), 1, 1.0);
  }
  add({2, 4}, RandomIds(8, k, experts, numbers), least, 1.0);
  std::vector<int64_t> all = AllIds(k, experts, kMostChoices);
  const int64_t rows = static_cast<int64_t>(all.size()) / k;
  if (rows > 0) add({1, rows}, std::move(all), least, std::ldexp(1.0, -4));
  return trials;
}

}  // namespace autoep

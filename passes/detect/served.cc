// SPDX-License-Identifier: Apache-2.0
// Grouping the feed-forwards of a graph into loops, and choices that such a loop can serve.
#include "passes/detect/served.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <set>

#include "passes/detect/ir.h"
#include "passes/detect/row_shape.h"

namespace autoep {

using torch::jit::Module;
using torch::jit::Node;

namespace {

constexpr char kAnyNumber = '#';

std::vector<std::string> Components(const std::string& name) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::string Join(const std::vector<std::string>& parts) {
  std::string name;
  for (const std::string& part : parts) name += (name.empty() ? "" : ".") + part;
  return name;
}

// "expert_12": "expert_" and 12. False without digits at the end, or where they are not how the number is written.
bool SplitNumber(const std::string& text, std::string* stem, int64_t* number) {
  const size_t digits = text.find_last_not_of("0123456789") + 1;
  if (digits == text.size() || (text[digits] == '0' && digits + 1 != text.size())) return false;
  *stem = text.substr(0, digits);
  return std::from_chars(text.data() + digits, text.data() + text.size(), *number).ec == std::errc();
}

// The children of `holder` called `stem` and a number are 0 to total - 1.
bool CountsTo(const c10::ivalue::Object& holder, const std::string& stem, int64_t total) {
  std::set<int64_t> numbers;
  for (size_t i = 0; i < holder.type()->numAttributes(); ++i) {
    std::string other;
    int64_t number = 0;
    if (SplitNumber(holder.type()->getAttributeName(i), &other, &number) && other == stem) numbers.insert(number);
  }
  return static_cast<int64_t>(numbers.size()) == total && !numbers.empty() && *numbers.begin() == 0 &&
         *numbers.rbegin() == total - 1;
}

// The weights of one feed-forward.
std::vector<const Weight*> WeightsOf(const ExpertFfn& unit) {
  std::vector<const Weight*> weights = {&unit.down.weight, &unit.up.projection.weight};
  if (unit.gate) weights.push_back(&unit.gate->projection.weight);
  if (unit.down.bias) weights.push_back(&*unit.down.bias);
  if (unit.up.projection.bias) weights.push_back(&*unit.up.projection.bias);
  if (unit.gate && unit.gate->projection.bias) weights.push_back(&*unit.gate->projection.bias);
  return weights;
}

bool IsFrozen(const ExpertFfn& unit) { return unit.down.weight.name.starts_with("constant:"); }

// What the feed-forwards of one loop have in common, and the number that tells this one apart (-1: none).
struct Place {
  std::string loop;
  int64_t number = -1;
  std::string pattern;
};

Place PlaceOf(const Module& self, const ExpertFfn& unit, int64_t total) {
  if (unit.stacked()) {
    Place place;
    for (const Weight* weight : WeightsOf(unit)) place.loop += weight->name + "\n";
    return place;
  }
  if (unit.down.weight.at) {
    // A constant index into a stacked weight.
    Place place;
    for (const Weight* weight : WeightsOf(unit)) place.loop += weight->name + "[]\n";
    place.number = *unit.down.weight.at;
    return place;
  }
  if (IsFrozen(unit)) return {};
  Place place;
  for (const Weight* weight : WeightsOf(unit)) {
    int64_t number = -1;
    const std::string pattern = NumberedPattern(self, weight->name, total, &number);
    if (pattern.empty() || (place.number >= 0 && number != place.number)) return {};
    if (place.pattern.empty()) place.pattern = pattern;
    place.number = number;
    place.loop += pattern + "\n";
  }
  return place;
}

// %row = aten::view(%answer, [H]), perhaps weighted: a trace drops the dimension of tokens where its example had one.
bool TakesOneRow(const torch::jit::Value* answer, int64_t hidden, int depth = 0) {
  static const std::set<c10::Symbol> kWeighting = {c10::aten::mul, c10::aten::einsum, c10::aten::to, c10::prim::ListConstruct};
  constexpr int kDeepest = 4;
  const auto& uses = answer->uses();
  return std::any_of(uses.begin(), uses.end(), [&](const torch::jit::Use& use) {
    const Node* node = use.user;
    const bool view = node->kind() == c10::aten::view || node->kind() == c10::aten::reshape;
    if (view && use.offset == 0) return ConstInts(node->input(1)) == std::vector<int64_t>{hidden};
    return depth < kDeepest && kWeighting.contains(node->kind()) && TakesOneRow(node->output(), hidden, depth + 1);
  });
}

void AddUnit(const ExpertUnits& units, int index, const Place& place, ServedExperts& served) {
  served.members.push_back(index);
  const ExpertFfn& unit = units.units[index];
  const int expert = units.expert[index];
  if (std::find(served.units.begin(), served.units.end(), expert) == served.units.end()) served.units.push_back(expert);
  if (!unit.down.counts.empty()) served.rows = unit.down.counts;
  if (place.number < 0) return;
  if (std::find(served.experts.begin(), served.experts.end(), place.number) == served.experts.end()) {
    served.experts.push_back(place.number);
  }
  if (unit.stacked() || place.number >= served.total) return;
  served.unit_of_expert.resize(served.total, -1);
  served.unit_of_expert[place.number] = expert;
  if (TakesOneRow(unit.output, unit.hidden())) {
    served.rows.resize(served.total, kAnyRows);
    served.rows[place.number] = 1;
  }
  served.pattern = place.pattern;
}

void Finish(ServedExperts& served) {
  std::sort(served.units.begin(), served.units.end());
  std::sort(served.experts.begin(), served.experts.end());
  if (!served.rows.empty() && !served.unit_of_expert.empty()) {
    for (int64_t e = 0; e < served.total; ++e) {
      if (served.unit_of_expert[e] < 0) served.rows[e] = 0;
    }
  } else if (!served.rows.empty()) {
    served.experts.clear();
    for (int64_t e = 0; e < static_cast<int64_t>(served.rows.size()); ++e) {
      if (served.rows[e] > 0) served.experts.push_back(e);
    }
  }
  served.count = static_cast<int64_t>(served.experts.empty() ? served.members.size() : served.experts.size());
}

}  // namespace

std::string NumberedPattern(const Module& self, const std::string& name, int64_t total, int64_t* number) {
  const std::vector<std::string> parts = Components(name);
  std::string found;
  c10::IValue holder = self._ivalue();
  for (size_t i = 0; i < parts.size() && holder.isObject(); ++i) {
    const auto object = holder.toObject();
    std::string stem;
    int64_t counted = -1;
    if (SplitNumber(parts[i], &stem, &counted) && CountsTo(*object, stem, total)) {
      std::vector<std::string> pattern = parts;
      pattern[i] = stem + kAnyNumber;
      found = Join(pattern);
      *number = counted;
    }
    if (!object->type()->hasAttribute(parts[i])) return "";
    holder = object->getAttr(parts[i]);
  }
  return found;
}

std::string NumberedName(const std::string& pattern, int64_t number) {
  const size_t at = pattern.find(kAnyNumber);
  return pattern.substr(0, at) + std::to_string(number) + pattern.substr(at + 1);
}

std::string NumberedPath(const std::string& pattern, int64_t number) {
  return NumberedName(pattern.substr(0, std::min(pattern.find('.', pattern.find(kAnyNumber)), pattern.size())), number);
}

std::vector<ServedExperts> FindServedExperts(const Module& self, const Router& router, const ExpertUnits& units) {
  std::map<std::string, ServedExperts> loops;
  for (size_t index = 0; index < units.units.size(); ++index) {
    const auto known = units.by_output.find(units.units[index].output->node());
    if (known == units.by_output.end() || known->second != static_cast<int>(index)) continue;
    const Place place = PlaceOf(self, units.units[index], router.num_experts);
    if (place.loop.empty()) continue;
    ServedExperts& served = loops[place.loop];
    served.total = router.num_experts;
    AddUnit(units, static_cast<int>(index), place, served);
  }
  std::vector<ServedExperts> found;
  for (auto& [name, served] : loops) {
    Finish(served);
    found.push_back(std::move(served));
  }
  return found;
}

std::optional<ServedExperts> FrozenLoop(const Router& router, const ExpertUnits& units, const std::vector<int>& members) {
  ServedExperts served;
  served.total = router.num_experts;
  for (const int member : members) {
    if (units.units[member].stacked() || !IsFrozen(units.units[member])) return std::nullopt;
    AddUnit(units, member, {}, served);
  }
  Finish(served);
  if (static_cast<int64_t>(served.units.size()) != served.total) return std::nullopt;
  return served;
}

int64_t MostChoices(const Router& router) {
  const Node* choice = router.choice;
  if (choice->kind() == c10::aten::cat) return static_cast<int64_t>(choice->input(0)->node()->inputs().size());
  if (choice->kind() != c10::aten::topk) return 1;
  return ConstInt(choice->input(1)).value_or(0);
}

namespace {

void Shuffle(std::vector<int64_t>& numbers, std::mt19937& random) {
  for (size_t i = numbers.size(); i > 1; --i) std::swap(numbers[i - 1], numbers[random() % i]);
}

// Expert e exactly rows[e] times: each token takes the experts that have most rows left.
ServedChoice ChooseRows(std::vector<int64_t> left, int64_t top_k, std::mt19937& random) {
  const int64_t sum = std::accumulate(left.begin(), left.end(), int64_t{0});
  TORCH_CHECK(sum % top_k == 0 && sum > 0, "the constant group sizes are no whole number of tokens");
  ServedChoice choice{1, sum / top_k, {}};
  std::vector<int64_t> order(left.size());
  std::iota(order.begin(), order.end(), 0);
  for (int64_t token = 0; token < choice.length; ++token) {
    Shuffle(order, random);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return left[a] > left[b]; });
    for (int64_t k = 0; k < top_k; ++k) {
      TORCH_CHECK(left[order[k]]-- > 0, "the constant group sizes fit no choice of experts");
      choice.ids.push_back(order[k]);
    }
  }
  // The last tokens have the rarest experts: mix them.
  std::vector<int64_t> tokens(choice.length), mixed;
  std::iota(tokens.begin(), tokens.end(), 0);
  Shuffle(tokens, random);
  for (const int64_t token : tokens) {
    std::vector<int64_t> row(choice.ids.begin() + token * top_k, choice.ids.begin() + (token + 1) * top_k);
    Shuffle(row, random);
    mixed.insert(mixed.end(), row.begin(), row.end());
  }
  choice.ids = std::move(mixed);
  return choice;
}

// Numbers for those that may have any, so that about `tokens` tokens have them all, none an expert twice.
std::vector<int64_t> FillRows(std::vector<int64_t> rows, int64_t top_k, int64_t tokens) {
  const int64_t free = std::count(rows.begin(), rows.end(), kAnyRows);
  if (free == 0) return rows;
  const int64_t fixed = std::accumulate(rows.begin(), rows.end(), int64_t{0}) + free;
  tokens = std::max(tokens, (fixed + free + top_k - 1) / top_k);
  if (top_k > free) tokens = std::min(tokens, fixed / (top_k - free));
  int64_t left = tokens * top_k - fixed;
  TORCH_CHECK(left >= free, "the constant group sizes fit no choice of experts");
  int64_t others = free;
  for (int64_t& count : rows) {
    if (count != kAnyRows) continue;
    count = (left + others - 1) / others;
    left -= count;
    --others;
  }
  return rows;
}

// Not one sequence only, where the number of tokens allows more.
void SplitIntoSequences(ServedChoice& choice) {
  if (choice.length == kShapeTokens.count()) {
    choice.batch = kShapeTokens.batch;
    choice.length = kShapeTokens.length;
  } else if (choice.length % 2 == 0) {
    choice.batch = 2;
    choice.length /= 2;
  }
}

}  // namespace

ServedChoice MakeServedChoice(const ServedExperts& served, int64_t top_k, int64_t tokens, std::mt19937& random) {
  TORCH_CHECK(top_k > 0, "the number of experts a token must be a constant");
  if (!served.rows.empty()) {
    const bool constant = std::find(served.rows.begin(), served.rows.end(), kAnyRows) == served.rows.end();
    ServedChoice choice = ChooseRows(FillRows(served.rows, top_k, tokens), top_k, random);
    if (!constant) SplitIntoSequences(choice);
    return choice;
  }
  std::vector<int64_t> experts = served.experts;
  if (experts.empty()) {
    experts.resize(served.total);
    std::iota(experts.begin(), experts.end(), 0);
    Shuffle(experts, random);
    experts.resize(std::min(served.count, served.total));
  }
  const int64_t count = static_cast<int64_t>(experts.size());
  TORCH_CHECK(top_k <= count, "the graph holds fewer experts than a token chooses");
  Shuffle(experts, random);
  const int64_t covering = (count + top_k - 1) / top_k;
  ServedChoice choice{1, std::max(tokens, covering), {}};
  SplitIntoSequences(choice);
  for (int64_t token = 0; token < choice.batch * choice.length; ++token) {
    // First so that every expert has a token, then at random.
    if (token >= covering) Shuffle(experts, random);
    for (int64_t k = 0; k < top_k; ++k) {
      choice.ids.push_back(experts[(token < covering ? token * top_k + k : k) % count]);
    }
  }
  return choice;
}

}  // namespace autoep

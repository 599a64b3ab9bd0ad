// SPDX-License-Identifier: Apache-2.0
// From the top-k down: what the chosen scores go through on their way to the experts' weights.
#include "passes/rewrite/router_form.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "passes/detect/ir.h"
#include "passes/rewrite/router_choice.h"

namespace autoep {

using torch::jit::AliasDb;
using torch::jit::Node;
using torch::jit::Value;
namespace aten = c10::aten;

namespace {

// Follows the weights while each step is one of the form's, in its order: cast, normalise, scale, cast.
class WeightChain {
 public:
  WeightChain(const RouterChoice& choice, int64_t num_experts, const AliasDb& aliases, RouterForm* form)
      : choice_(choice), num_experts_(num_experts), aliases_(aliases), form_(form) {}

  // False where the chosen scores are not what the weights begin with.
  bool Follow(Node* topk) {
    if (!Begin(topk)) return false;
    CastBefore();
    if (!Softmax()) Divide();
    Scale();
    CastAfter();
    return true;
  }

  // Whether what the weights end in can be written to without anyone seeing it who reads another value of the form.
  bool EndsAlone() const { return exclusive_ || !aliases_.hasWriters(form_->weights); }

 private:
  //   %weights, %ids = aten::topk(%choice, ..)
  //   %weights = aten::gather(%scores, 1, %ids, False)
  bool Begin(Node* topk) {
    Node* gather = nullptr;
    for (const auto& use : topk->output(1)->uses()) {
      if (use.user->kind() != aten::gather || use.offset != 2) continue;
      if (gather != nullptr) return false;
      gather = use.user;
    }
    const bool values = !topk->output(0)->uses().empty();
    if (values == (gather != nullptr)) return false;
    form_->weigh_choice = values;
    form_->weights = values ? topk->output(0) : gather->output();
    if (values) return true;
    return StripFlatView(gather->input(0), num_experts_) == choice_.scores && IsLastOfTwo(gather->input(1)) &&
           ConstBool(gather->input(3)) == false;
  }

  // The one node of `kinds` that reads the weights as its first input; null for none or several.
  Node* Next(std::initializer_list<c10::Symbol> kinds) const {
    Node* found = nullptr;
    for (const auto& use : form_->weights->uses()) {
      if (use.offset != 0 || std::find(kinds.begin(), kinds.end(), use.user->kind()) == kinds.end()) continue;
      if (found != nullptr) return nullptr;
      found = use.user;
    }
    return found;
  }

  // Goes on to what `node` makes of the weights, of which it and its helpers account for `uses` uses. Where there are others,
  // nothing may write to them.
  bool Step(Node* node, size_t uses) {
    const bool in_place = node->kind() == aten::div_ || node->kind() == aten::mul_;
    const bool exclusive = exclusive_ && form_->weights->uses().size() == uses;
    if (!exclusive && (in_place || aliases_.hasWriters(form_->weights))) return false;
    exclusive_ = exclusive;
    form_->weights = node->output();
    return true;
  }

  // A cast to the logits' own dtype changes nothing where no other cast came before.
  void CastBefore() {
    if (Node* same = Next({aten::type_as})) {
      const bool promoted = form_->weigh_choice && form_->bias != nullptr;
      if (!form_->score_dtype && same->input(1) == form_->logits && !promoted) Step(same, 1);
      return;
    }
    Node* cast = Next({aten::to});
    std::optional<int64_t> dtype;
    if (cast == nullptr || StripCast(cast->output(), &dtype) != form_->weights || !HasNormalisation(cast->output())) return;
    if (Step(cast, 1)) form_->weight_dtype = dtype;
  }

  static bool HasNormalisation(const Value* weights) {
    return std::any_of(weights->uses().begin(), weights->uses().end(), [](const torch::jit::Use& use) {
      const c10::Symbol kind = use.user->kind();
      return kind == aten::div || kind == aten::div_ || kind == aten::softmax;
    });
  }

  // %weights = aten::softmax(%chosen, -1, dtype)
  bool Softmax() {
    Node* node = Next({aten::softmax});
    if (node == nullptr || !IsLastOfTwo(node->input(1))) return false;
    std::optional<int64_t> dtype;
    if (!IsNone(node->input(2)) && !(dtype = KnownInt(node->input(2)))) return false;
    if (dtype && form_->weight_dtype) return false;
    if (!Step(node, 1)) return false;
    if (dtype) form_->weight_dtype = dtype;
    form_->renorm = "softmax";
    return true;
  }

  //   %sum = aten::sum(%chosen, [-1], True, None)
  //   %by = %sum, aten::add(%sum, epsilon, 1), or aten::clamp(%sum, minimum, None)
  //   %weights = aten::div(%chosen, %by)
  void Divide() {
    Node* node = Next({aten::div, aten::div_});
    if (node == nullptr || node->inputs().size() != 2) return;
    Value* by = node->input(1);
    std::string renorm = "sum";
    double least = 0;
    Node* guard = by->node();
    if (guard->kind() == aten::add || guard->kind() == aten::clamp || guard->kind() == aten::clamp_min) {
      const auto number = ConstNumber(guard->input(1));
      const bool plain = guard->kind() == aten::clamp_min ||
                         (guard->kind() == aten::add ? ConstNumber(guard->input(2)) == 1.0 : IsNone(guard->input(2)));
      if (!number || !plain || by->uses().size() != 1) return;
      least = *number;
      if (guard->kind() != aten::add) renorm = "clamp";
      by = guard->input(0);
    }
    if (!IsSumOfWeights(by) || !Step(node, 2)) return;
    form_->renorm = renorm;
    form_->renorm_min = least;
  }

  bool IsSumOfWeights(const Value* sum) const {
    const Node* node = sum->node();
    if (node->kind() != aten::sum || node->inputs().size() != 4 || node->input(0) != form_->weights) return false;
    const auto dims = ConstInts(node->input(1));
    return dims && dims->size() == 1 && ((*dims)[0] == -1 || (*dims)[0] == 1) && ConstBool(node->input(2)) == true &&
           IsNone(node->input(3)) && sum->uses().size() == 1;
  }

  void Scale() {
    Node* node = Next({aten::mul, aten::mul_});
    const auto factor = node ? ConstNumber(node->input(1)) : std::nullopt;
    if (factor && Step(node, 1)) form_->scale = *factor;
  }

  void CastAfter() {
    Node* cast = Next({aten::to});
    std::optional<int64_t> dtype;
    if (cast == nullptr || StripCast(cast->output(), &dtype) != form_->weights) return;
    if (Step(cast, 1)) form_->dtype = dtype;
  }

  const RouterChoice& choice_;
  const int64_t num_experts_;
  const AliasDb& aliases_;
  RouterForm* form_;
  bool exclusive_ = true;
};

}  // namespace
std::string RouterForm::Summary() const {
  std::string text = scores == "none" ? "logits" : scores;
  if (bias) text += " + bias";
  if (num_groups > 1) text += fmt::format(", {} of {} groups by {}", top_groups, num_groups, group_score);
  const auto k = KnownInt(top_k);
  text += k ? fmt::format(", top {}", *k) : ", top k";
  if (renorm != "none") text += renorm == "softmax" ? ", softmax of the chosen" : ", divided by their sum";
  if (scale != 1) text += fmt::format(", times {}", scale);
  return text;
}

std::optional<RouterForm> MatchRouterForm(Node* topk, int64_t num_experts, const AliasDb& aliases) {
  RouterForm form;
  const auto choice = MatchRouterChoice(topk, num_experts, aliases, &form);
  if (!choice) return std::nullopt;
  WeightChain chain(*choice, num_experts, aliases, &form);
  if (!chain.Follow(topk) || !chain.EndsAlone()) return std::nullopt;
  if (form.scores == "none" && form.renorm == "none") return std::nullopt;
  return form;
}

}  // namespace autoep

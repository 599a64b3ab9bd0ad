// SPDX-License-Identifier: Apache-2.0
// Passes fuse-moe, where one rank holds all experts, and fuse-ranks, where several do:
//   %rows, %offsets, %counts, %order, %received = autoep::dispatch(%tokens, %ids, %scale, %placement, %ep_size, %group, ..)
//   %done = autoep::experts(%rows, %offsets, ..)
//   %out = autoep::combine(%done, %weights, %order, %counts, %received, ..)
// becomes
//   %out = autoep::moe(%tokens, %ids, %weights, %scale, %placement, .., %dtype, %layer, %abi)
// with %ep_size, %group after %dtype where there are several ranks. Attributes and weights stay as they are.
#include <fmt/format.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_pooling.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/pipeline.h"
#include "passes/rewrite/ep_ops.h"
#include "passes/rewrite/rewritten.h"

namespace autoep {
namespace {

constexpr char kMoe[] = "fuse-moe";
constexpr char kRanks[] = "fuse-ranks";

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

struct ThreeOps {
  Node* dispatch = nullptr;
  Node* experts = nullptr;
  Node* combine = nullptr;
};

// The node of this kind that reads all of `values`, which nothing else reads.
Node* OnlyReader(const char* kind, const std::vector<Value*>& values) {
  Node* reader = values[0]->uses().empty() ? nullptr : values[0]->uses()[0].user;
  if (!reader || reader->kind() != c10::Symbol::fromQualString(kind)) return nullptr;
  for (const Value* value : values) {
    if (value->uses().size() != 1 || value->uses()[0].user != reader) return nullptr;
  }
  return reader;
}

std::optional<ThreeOps> FindThreeOps(Node* dispatch) {
  const auto sent = dispatch->outputs();
  Node* experts = OnlyReader("autoep::experts", {sent[0], sent[1]});
  Node* combine = OnlyReader("autoep::combine", {sent[2], sent[3], sent[4]});
  if (!experts || !combine || OnlyReader("autoep::combine", {experts->output()}) != combine) return std::nullopt;
  return ThreeOps{dispatch, experts, combine};
}

Node* OnlyUser(const Value* value, c10::Symbol kind) {
  if (value->uses().size() != 1 || value->uses()[0].offset != 0) return nullptr;
  Node* user = value->uses()[0].user;
  return user->kind() == kind ? user : nullptr;
}

// The dtype to which the sum is cast where that is the experts' own: then it is rounded once, by moe as by combine and the cast.
std::optional<int64_t> CastOf(const Value* sum, at::ScalarType experts) {
  if (const Node* reshape = OnlyUser(sum, c10::aten::reshape_as)) sum = reshape->output();
  const Node* cast = OnlyUser(sum, c10::aten::to);
  const auto dtype = cast ? torch::jit::toIValue(cast->input(1)) : std::nullopt;
  if (!dtype || !dtype->isInt() || dtype->toInt() != static_cast<int64_t>(experts)) return std::nullopt;
  return dtype->toInt();
}

void Fuse(Graph& graph, const ThreeOps& ops, at::ScalarType experts, bool one_rank) {
  const torch::jit::WithInsertPoint here(ops.combine);
  const auto dtype = CastOf(ops.combine->output(), experts);
  Value* given = graph.insertConstant(dtype ? at::IValue(*dtype) : at::IValue());
  const Node& dispatch = *ops.dispatch;
  std::vector<torch::jit::NamedValue> arguments = {dispatch.input(0), dispatch.input(1), ops.combine->input(1), dispatch.input(2),
                                                   dispatch.input(3)};
  // The weights and the activation, of experts.
  for (size_t i = 2; i < 8; ++i) arguments.emplace_back(ops.experts->input(i));
  arguments.emplace_back(given);
  for (size_t i = one_rank ? 6 : 4; i < 8; ++i) arguments.emplace_back(dispatch.input(i));
  Value* sum = graph.insert(c10::Symbol::fromQualString("autoep::moe"), arguments);
  sum->node()->setSourceRange(ops.combine->sourceRange());
  ops.combine->output()->replaceAllUsesWith(sum);
}

class FuseMoe : public Pass {
 public:
  FuseMoe(PassContext& context, bool one_rank) : context_(context), one_rank_(one_rank) {}

  Result<Change> Run(MoeModel& model) override {
    Change change;
    if ((context_.plan().ep_size == 1) != one_rank_) return change;
    for (const RewrittenGraph& rewritten : RewrittenGraphs(model.module, context_)) FuseGraph(rewritten, change);
    return change;
  }

 private:
  // Of objects that share the graph, the first asks for all.
  void FuseGraph(const RewrittenGraph& rewritten, Change& change) {
    auto dispatches = FindDispatches(*rewritten.graph);
    bool changed = false;
    for (const PlannedLayer* planned : rewritten.layers) {
      const auto dispatch = dispatches.extract(planned->Attribute("layer"));
      const auto ops = dispatch ? FindThreeOps(dispatch.mapped()) : std::nullopt;
      if (!ops || !context_.Allow(one_rank_ ? kMoe : kRanks)) continue;
      Fuse(*rewritten.graph, *ops, planned->layer.tensors.at(0).dtype, one_rank_);
      change.edits.push_back(fmt::format("{}: moe computes dispatch, experts and combine", planned->Name()));
      changed = true;
    }
    if (!changed) return;
    RemoveDeadCode(rewritten.graph);
    torch::jit::ConstantPooling(rewritten.graph);
  }

  PassContext& context_;
  const bool one_rank_;
};

const RegisterPass kOneRank({kMoe, "Where one rank holds all experts, compute each layer by the op moe", 16, true,
                             [](PassContext& context) { return std::make_unique<FuseMoe>(context, true); }});
const RegisterPass kSeveralRanks({kRanks, "Where several ranks hold the experts, compute each layer by the op moe", 18, false,
                                  [](PassContext& context) { return std::make_unique<FuseMoe>(context, false); }});

}  // namespace
}  // namespace autoep

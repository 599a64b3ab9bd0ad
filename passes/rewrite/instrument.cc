// SPDX-License-Identifier: Apache-2.0
// %ids2 = autoep::record_routes(%ids, %weights, %layer)
// Something that the graph reads must come from the record, or it goes as dead code: what the router hands over passes
// through a no-op that names it,
//   %again = aten::where(%always, %given, %given); %always = aten::ge(aten::sum(%ids2), 0)
#include "passes/rewrite/instrument.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/csrc/jit/ir/ir.h>

#include <map>
#include <string>
#include <vector>

#include "passes/normalize/simplify.h"
#include "passes/repack/plan.h"
#include "passes/rewrite/blocks.h"
#include "passes/rewrite/capacity.h"
#include "passes/rewrite/dense_experts.h"
#include "passes/rewrite/routes.h"

namespace autoep {
namespace {

using torch::jit::Node;
using torch::jit::Value;

std::string AttributeName(size_t position) { return fmt::format("autoep_route_{}", position); }

// The first place where all of these are there. A graph's inputs are there from the start.
Node* FirstAfter(const std::vector<Value*>& values) {
  Node* last = nullptr;
  for (const Value* value : values) {
    Node* node = const_cast<Node*>(value->node());
    if (!last || node->isAfter(last)) last = node;
  }
  return last->kind() == c10::prim::Param ? last->owningBlock()->nodes().front() : last->next();
}

// Makes the match's weights those that went through the record.
void Record(BlockGraph& block, BlockMatch& match, const std::string& attribute) {
  torch::jit::Graph& graph = *block.graph;
  std::vector<Value*> given;
  for (Value* value : {match.ids, match.mask, match.weights}) {
    if (value) given.push_back(value);
  }
  Node* const place = FirstAfter(given);
  Node* const before = place->prev();
  const torch::jit::WithInsertPoint here(place);
  const Routes routes = InsertRoutes(graph, match);
  Value* layer = graph.insertGetAttr(graph.inputs().at(0), attribute);
  Value* ids = graph.insert(c10::Symbol::fromQualString("autoep::record_routes"), {routes.ids, routes.weights, layer});
  Value* always = graph.insert(c10::aten::ge, {graph.insert(c10::aten::sum, {ids}), 0});
  Value* again = graph.insert(c10::aten::where, {always, match.weights, match.weights});
  match.weights->replaceAllUsesAfterNodeWith(again->node(), again);
  for (Node* node = before->next(); node != place; node = node->next()) node->setSourceRange(match.out->node()->sourceRange());
  match.weights = again;
}

// Where the source is wrong, the dense mathematics takes its place. What one layer gives may be what the next one reads.
void ReplaceRebuilt(BlockGraph& block) {
  std::map<Value*, Value*> now;
  for (const MatchedLayer& matched : block.matches) {
    if (matched.match.rebuilt.empty()) continue;
    BlockMatch match = matched.match;
    if (const auto found = now.find(match.tokens); found != now.end()) match.tokens = found->second;
    now[match.out] = InsertDenseExperts(*block.graph, match);
  }
  if (!now.empty()) RemoveDeadCode(block.graph);
}

Status Instrument(MoeModel& model, const std::vector<MoeLayer>& layers) {
  const std::vector<std::string> names = LayerNames(layers);
  AUTOEP_ASSIGN_OR_RETURN(std::vector<BlockGraph> blocks, PrepareBlocks(model.module, layers));
  for (BlockGraph& block : blocks) {
    for (size_t m = 0; m < block.matches.size(); ++m) {
      MatchedLayer& matched = block.matches[m];
      for (size_t i = 0; i < block.objects.size(); ++i) {
        block.objects[i].register_attribute(AttributeName(m), c10::StringType::get(), names[matched.layers[i]]);
      }
      Record(block, matched.match, AttributeName(m));
      LiftCapacity(*block.graph, matched.match, layers[matched.layers[0]]);
    }
    ReplaceRebuilt(block);
    block.graph->lint();
  }
  return Status();
}

}  // namespace

Status InstrumentRoutes(MoeModel& model, const Detection& detection) {
  std::vector<std::string> notes;
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<MoeLayer> layers, DistinctLayers(model, detection, &notes));
  try {
    return Instrument(model, layers);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, std::string("the routes could not be instrumented: ") + error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Status(Code::kBug, std::string("the routes could not be instrumented: ") + error.what());
  }
}

}  // namespace autoep

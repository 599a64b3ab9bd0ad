// SPDX-License-Identifier: Apache-2.0
// %ids2 = autoep::record_routes(%ids, %weights, %layer); %weights2 = aten::view_as(%weights, %ids2)
// The view keeps the record alive where the graph no longer reads the ids themselves; both have the shape [.., k].
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
#include "passes/rewrite/dense_experts.h"

namespace autoep {
namespace {

using torch::jit::Node;
using torch::jit::Value;

std::string AttributeName(size_t position) { return fmt::format("autoep_route_{}", position); }

// The first place where both values are there. A graph's inputs are there from the start.
Node* FirstAfter(const Value* a, const Value* b) {
  Node* const last = a->node()->isAfter(b->node()) ? const_cast<Node*>(a->node()) : const_cast<Node*>(b->node());
  return last->kind() == c10::prim::Param ? last->owningBlock()->nodes().front() : last->next();
}

// Makes the match's ids and weights those that went through the record.
void Record(BlockGraph& block, BlockMatch& match, const std::string& attribute) {
  torch::jit::Graph& graph = *block.graph;
  Node* const place = FirstAfter(match.ids, match.weights);
  const torch::jit::WithInsertPoint here(place);
  Value* layer = graph.insertGetAttr(graph.inputs().at(0), attribute);
  Value* ids = graph.insert(c10::Symbol::fromQualString("autoep::record_routes"), {match.ids, match.weights, layer});
  Value* weights = graph.insert(c10::aten::view_as, {match.weights, ids});
  match.ids->replaceAllUsesAfterNodeWith(weights->node(), ids);
  match.weights->replaceAllUsesAfterNodeWith(weights->node(), weights);
  for (Node* node = layer->node(); node != place; node = node->next()) node->setSourceRange(match.out->node()->sourceRange());
  match.ids = ids;
  match.weights = weights;
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

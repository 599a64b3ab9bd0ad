// SPDX-License-Identifier: Apache-2.0
// Branches that are known, dead code, and the preparation of a block's graph.
#include "passes/normalize/simplify.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/irparser.h>

#include <algorithm>

#include "passes/detect/match.h"

namespace autoep {
namespace {

std::shared_ptr<torch::jit::Graph> Parse(const std::string& text) {
  auto graph = std::make_shared<torch::jit::Graph>();
  torch::jit::parseIR(text, graph.get());
  return graph;
}

int64_t Count(const torch::jit::Block* block, const char* kind) {
  int64_t count = 0;
  for (const torch::jit::Node* node : block->nodes()) {
    count += node->kind() == c10::Symbol::fromQualString(kind);
    for (const torch::jit::Block* inner : node->blocks()) count += Count(inner, kind);
  }
  return count;
}

TEST(FoldConstantIfs, TakesTheKnownBranchInNestedBlocksToo) {
  const auto graph = Parse(R"(
    graph(%x : Tensor, %c : bool):
      %t : bool = prim::Constant[value=1]()
      %f : bool = aten::__not__(%t)
      %y : Tensor = prim::If(%c)
        block0():
          %a : Tensor = prim::If(%f)
            block0():
              %r : Tensor = aten::relu(%x)
              -> (%r)
            block1():
              %s : Tensor = aten::sigmoid(%x)
              -> (%s)
          -> (%a)
        block1():
          -> (%x)
      return (%y))");
  FoldConstantIfs(graph->block());
  EXPECT_EQ(Count(graph->block(), "prim::If"), 1);
  EXPECT_EQ(Count(graph->block(), "aten::relu"), 0);
  EXPECT_EQ(Count(graph->block(), "aten::sigmoid"), 1);
  graph->lint();
}

TEST(FoldConstantIfs, DecidesTestsForNoneByType) {
  const auto graph = Parse(R"(
    graph(%x : Tensor):
      %n : NoneType = prim::Constant()
      %i : int = prim::Constant[value=6]()
      %c : bool = aten::__is__(%i, %n)
      %y : Tensor = prim::If(%c)
        block0():
          %r : Tensor = aten::relu(%x)
          -> (%r)
        block1():
          %s : Tensor = aten::sigmoid(%x)
          -> (%s)
      return (%y))");
  FoldConstantIfs(graph->block());
  EXPECT_EQ(Count(graph->block(), "prim::If"), 0);
  EXPECT_EQ(Count(graph->block(), "aten::sigmoid"), 1);
}

TEST(RemoveDeadCode, EmptiesInPlaceChains) {
  const auto graph = Parse(R"(
    graph(%x : Tensor, %i : Tensor):
      %zero : int = prim::Constant[value=0]()
      %one : int = prim::Constant[value=1]()
      %none : NoneType = prim::Constant()
      %o : Tensor = aten::zeros_like(%x, %none, %none, %none, %none, %none)
      %p : Tensor = aten::index_add_(%o, %zero, %i, %x, %one)
      %q : Tensor = aten::index_add_(%o, %zero, %i, %p, %one)
      return (%x))");
  RemoveDeadCode(graph);
  EXPECT_EQ(Count(graph->block(), "aten::index_add_"), 0);
  EXPECT_EQ(Count(graph->block(), "aten::zeros_like"), 0);
}

TEST(RemoveDeadCode, EmptiesBranchesOfWhatNothingReads) {
  const auto graph = Parse(R"(
    graph(%x : Tensor, %c : bool):
      %y : Tensor, %z : Tensor = prim::If(%c)
        block0():
          %r : Tensor = aten::relu(%x)
          %s : Tensor = aten::sigmoid(%x)
          -> (%r, %s)
        block1():
          %t : Tensor = aten::tanh(%x)
          -> (%t, %x)
      return (%y))");
  RemoveDeadCode(graph);
  EXPECT_EQ(Count(graph->block(), "aten::sigmoid"), 0);
  EXPECT_EQ(Count(graph->block(), "aten::relu"), 1);
  EXPECT_EQ(Count(graph->block(), "aten::tanh"), 1);
}

TEST(RemoveDeadCode, KeepsWritesToInputs) {
  const auto graph = Parse(R"(
    graph(%x : Tensor):
      %y : Tensor = aten::relu_(%x)
      return (%x))");
  RemoveDeadCode(graph);
  EXPECT_EQ(Count(graph->block(), "aten::relu_"), 1);
}

TEST(PrepareBlockGraph, InlinesCalleesAndLeavesTheModuleAsItWas) {
  torch::jit::Module inner("__torch__.tests.Inner");
  inner.define("def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:\n    return torch.relu(x), torch.sigmoid(x)\n");
  torch::jit::Module outer("__torch__.tests.Outer", inner._ivalue()->compilation_unit());
  outer.register_module("inner", inner);
  outer.define("def forward(self, x: Tensor) -> Tensor:\n    a, b = self.inner.forward(x)\n    return a\n");
  const auto graph = outer.get_method("forward").graph()->copy();
  PrepareBlockGraph(graph);
  EXPECT_EQ(Count(graph->block(), "prim::CallMethod"), 0);
  EXPECT_EQ(Count(graph->block(), "prim::TupleConstruct"), 0);
  EXPECT_EQ(Count(graph->block(), "aten::relu"), 1);
  EXPECT_EQ(Count(graph->block(), "aten::sigmoid"), 0);
  EXPECT_EQ(Count(outer.get_method("forward").graph()->block(), "prim::CallMethod"), 1);
}

}  // namespace
}  // namespace autoep

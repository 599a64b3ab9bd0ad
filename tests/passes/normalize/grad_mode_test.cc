// SPDX-License-Identifier: Apache-2.0
// A gradient mode goes where it changes nothing, and stays everywhere else.
#include "passes/normalize/grad_mode.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/irparser.h>

#include <algorithm>
#include <deque>

#include "tests/passes/replace.h"

namespace autoep {
namespace {

using torch::jit::Graph;
using torch::jit::Node;
namespace prim = c10::prim;

constexpr char kMode[] = R"(
def __enter__(self):
    self.prev = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    return None
def __exit__(self):
    torch.set_grad_enabled(self.prev)
    return None
)";

class GradMode : public ::testing::Test {
 protected:
  // A graph whose nodes behind the constants run in a mode. `inside` makes %y of floats %x and ids %ids.
  std::shared_ptr<Graph> MakeGraph(const std::string& inside, const std::string& methods = kMode) {
    auto graph = std::make_shared<Graph>();
    const std::string inputs = "graph(%x : Tensor, %ids : Tensor):\n  %six : int = prim::Constant[value=6]()\n";
    torch::jit::parseIR(inputs + inside + "  return (%y)", graph.get());
    auto nodes = graph->nodes();
    Node* first = *std::find_if(nodes.begin(), nodes.end(), [](const Node* node) { return node->kind() != prim::Constant; });
    Node* object = graph->createObject(MakeMode(methods))->insertBefore(first);
    Node* enter = graph->create(prim::Enter, {object->output()})->insertBefore(first);
    enter->output()->setType(c10::NoneType::get());
    graph->create(prim::Exit, {object->output()})->insertBefore(graph->return_node());
    return graph;
  }

 private:
  c10::ClassTypePtr MakeMode(const std::string& methods) {
    torch::jit::Module& mode = modes_.emplace_back("__torch__.tests.Mode");
    mode.register_attribute("prev", c10::BoolType::get(), false);
    mode.define(methods);
    return mode.type();
  }

  std::deque<torch::jit::Module> modes_;  // hold the methods of their types
};

bool IsRemoved(const std::shared_ptr<Graph>& graph) {
  RemoveIdleGradModes(graph->block());
  graph->lint();
  auto nodes = graph->nodes();
  const auto left = std::count_if(nodes.begin(), nodes.end(), [](const Node* node) {
    return node->kind() == prim::CreateObject || node->kind() == prim::Enter || node->kind() == prim::Exit;
  });
  EXPECT_TRUE(left == 0 || left == 3);
  return left == 0;
}

const std::string kHits = "  %one : Tensor = aten::one_hot(%ids, %six)\n  %more : Tensor = aten::gt(%one, %six)\n";
const std::string kFound = kHits + "  %y : Tensor = aten::nonzero(%more)\n";

TEST_F(GradMode, GoesAroundIndicesAndTruths) { EXPECT_TRUE(IsRemoved(MakeGraph(kFound))); }

TEST_F(GradMode, StaysAroundWhatMayHaveAGradient) {
  EXPECT_FALSE(IsRemoved(MakeGraph("  %y : Tensor = aten::relu(%x)\n")));
  EXPECT_FALSE(IsRemoved(MakeGraph(kFound + "  %z : Tensor = aten::relu(%x)\n")));
  EXPECT_FALSE(IsRemoved(MakeGraph("  %y : Tensor = aten::t(%x)\n")));
}

TEST_F(GradMode, StaysAroundEffects) {
  const std::string off = "  %off : bool = prim::Constant[value=0]()\n";
  EXPECT_FALSE(IsRemoved(MakeGraph(off + kFound + "  aten::set_grad_enabled(%off)\n")));
}

TEST_F(GradMode, StaysWhereItDoesMore) {
  EXPECT_FALSE(IsRemoved(MakeGraph(kFound, testing::Replace(kMode, "    return None", "    print(\"in\")\n    return None"))));
}

TEST_F(GradMode, StaysWhereTheObjectIsReadElsewhere) {
  const auto graph = MakeGraph(kFound);
  auto nodes = graph->nodes();
  Node* object = *std::find_if(nodes.begin(), nodes.end(), [](const Node* node) { return node->kind() == prim::CreateObject; });
  graph->createGetAttr(object->output(), "prev")->insertBefore(graph->return_node());
  EXPECT_FALSE(IsRemoved(graph));
}

}  // namespace
}  // namespace autoep

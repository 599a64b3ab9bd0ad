// SPDX-License-Identifier: Apache-2.0
// From the root down, so that a parent's type is its own before its attribute gets another type.
#include "passes/rewrite/unshare.h"

#include <algorithm>

#include "passes/model/modules.h"

namespace autoep {
namespace {

// In every graph that reads `attribute` of `type`, gives the value read its new type.
void RetypeReads(const torch::jit::Module& root, const c10::ClassTypePtr& type, const std::string& attribute) {
  for (torch::jit::GraphFunction* function : AllFunctions(ObjectIndex(root))) {
    ForEachNode(function->graph()->block(), [&](torch::jit::Node* node) {
      if (node->kind() != c10::prim::GetAttr || node->s(c10::attr::name) != attribute) return;
      if (node->input()->type()->cast<c10::ClassType>() == type) node->output()->setType(type->getAttribute(attribute));
    });
  }
}

}  // namespace

void Unshare(torch::jit::Module& root, const std::string& path) {
  torch::jit::Module parent = root;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    torch::jit::Module child = parent.attr(name).toModule();
    if (ObjectIndex(root).OfType(child.type().get()).size() > 1) {
      child = child.clone(/*inplace=*/true);
      parent.type()->unsafeChangeAttributeType(name, child.type());
      parent._ivalue()->setAttr(name, child._ivalue());
      RetypeReads(root, parent.type(), name);
    }
    parent = child;
    begin = end + 1;
  }
}

}  // namespace autoep

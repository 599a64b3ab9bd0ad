// SPDX-License-Identifier: Apache-2.0
// Puts autoep::route in the place of a proved router.
#pragma once

#include <memory>

#include "passes/rewrite/router_form.h"

namespace autoep {

// Inserts the op in front of form.ids' node and lets everything that read form's ids and weights read the op's. `layer` is a
// string value of the graph, for messages. What nothing reads any more is left to RemoveDeadCode.
void InsertRoute(torch::jit::Graph& graph, const RouterForm& form, torch::jit::Value* layer);

}  // namespace autoep

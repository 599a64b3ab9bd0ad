// SPDX-License-Identifier: Apache-2.0
// Marks the routing decisions of a source model, so that a run of it can be compared route by route with a converted one.
#pragma once

#include "passes/detect/moe_layer.h"
#include "passes/model/moe_model.h"
#include "plugin/io/status.h"

namespace autoep {

// Inserts autoep::record_routes(ids, weights, layer) at every detected layer of `model`, which must be the model that was
// detected and not rewritten. The layer's name is its module path, with "[n]" where one module holds several MoEs: the
// label of the converted layer without "#<digest>". Values and gradients stay as they were.
Status InstrumentRoutes(MoeModel& model, const Detection& detection);

}  // namespace autoep

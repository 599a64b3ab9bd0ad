// SPDX-License-Identifier: Apache-2.0
// Plan: what a conversion will make of each MoE layer: names in the rewritten model, placement, and who holds which bytes.
// Nothing is read or changed to make one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "passes/detect/moe_layer.h"
#include "passes/model/moe_model.h"
#include "plugin/contract/placement.h"
#include "plugin/io/status.h"

namespace autoep {

struct PlannedTensor {
  ExpertTensor tensor;    // its parts name source tensors as the source's archive does (model/tensors.h)
  std::string attribute;  // on the block: "autoep_gate_up"
  std::string param;      // in model.pt and in the shards: "model.layers.0.mlp.autoep_gate_up"

  int64_t ExpertBytes() const;  // of one expert
};

struct PlannedLayer {
  MoeLayer layer;
  std::string prefix;  // of the block's new attributes: "autoep_", or "autoep_<n>_" where one module holds several MoEs
  std::string label;   // "<module path>#<plan digest>", the ops' `layer`
  contract::Placement placement;
  std::vector<PlannedTensor> tensors;

  std::string Name() const { return layer.path.empty() ? "the root" : layer.path; }  // of the block, in reports
  std::string Attribute(const std::string& name) const { return prefix + name; }     // "group" -> "autoep_group"
  std::string Path(const std::string& name) const;                                   // the same with the block's path
};

struct Plan {
  int64_t ep_size = 1;
  std::string digest;  // of source, ep size and placements; hex
  std::vector<PlannedLayer> layers;
  std::vector<std::string> notes;  // sentences for people

  int64_t RankBytes() const;  // expert bytes of one rank; all ranks hold the same number
};

// Names of layers: the module path, with "[n]" appended where one module holds several MoEs. In the order of `layers`.
std::vector<std::string> LayerNames(const std::vector<MoeLayer>& layers);

// The detected layers without those whose module another path names already; says so in `notes`. kBug for a path that names
// no module.
Result<std::vector<MoeLayer>> DistinctLayers(const MoeModel& model, const Detection& detection, std::vector<std::string>* notes);

// Linear placement for every layer. kNoMoe if nothing was detected, kUsage for an ep size below 1, kPlan if it does not
// divide a layer's experts (the sentence names the layer, its experts and the sizes that work for all layers).
Result<Plan> BuildPlan(const MoeModel& model, const Detection& detection, int64_t ep_size);

}  // namespace autoep

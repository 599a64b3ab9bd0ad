// SPDX-License-Identifier: Apache-2.0
// Names, placements and the digest that ranks compare.
#include "passes/repack/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "passes/model/modules.h"
#include "passes/model/tensors.h"
#include "plugin/contract/dtype.h"
#include "plugin/io/sha256.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr size_t kLabelDigits = 16;

std::string Where(const std::string& name) { return name.empty() ? "the model's root" : "'" + Printable(name) + "'"; }

std::map<std::string, int64_t> CountPaths(const std::vector<MoeLayer>& layers) {
  std::map<std::string, int64_t> counts;
  for (const MoeLayer& layer : layers) ++counts[layer.path];
  return counts;
}

Status CheckEpSize(const std::vector<MoeLayer>& layers, const std::vector<std::string>& names, int64_t ep_size) {
  if (ep_size < 1) return Status(Code::kUsage, fmt::format("the ep size is {}: give the number of ranks, 1 or more", ep_size));
  int64_t common = 0;
  for (const MoeLayer& layer : layers) common = std::gcd(common, layer.num_experts);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t experts = layers[i].num_experts;
    if (ep_size <= experts && experts % ep_size == 0) continue;
    return Status(Code::kPlan,
                  fmt::format("{} has {} experts, and {} ranks cannot hold the same number of them each: ep sizes that work "
                              "for every layer are {}",
                              Where(names[i]), experts, ep_size, fmt::join(contract::PossibleEpSizes(common), ", ")));
  }
  return Status();
}

// Gives the constants of a frozen model the names that they have in the archive.
Status NameConstants(const SourceTensors& source, ExpertTensor& tensor) {
  for (size_t i = 0; i < tensor.parts.size(); ++i) {
    if (!tensor.parts[i].tensor.starts_with("constant:")) continue;
    const auto name = source.ConstantName(tensor.sources[i]);
    if (!name)
      return Status(Code::kBug,
                    fmt::format("the expert weights {} are not in the archive's table of constants", tensor.parts[i].tensor));
    tensor.parts[i].tensor = *name;
  }
  return Status();
}

Status CheckTensor(const ExpertTensor& tensor) {
  if (!contract::FindDtype(tensor.dtype)) {
    return Status(Code::kPlan, fmt::format("its {} weights are {}: expert weights in F64, F32, F16 and BF16 can be sharded",
                                           tensor.role, c10::toString(tensor.dtype)));
  }
  if (tensor.sources.size() == tensor.parts.size() && !tensor.parts.empty()) return Status();
  return Status(Code::kBug, fmt::format("{} source tensors were found for {} parts of {}", tensor.sources.size(),
                                        tensor.parts.size(), tensor.role));
}

Status PlanTensors(const SourceTensors& source, PlannedLayer& planned) {
  for (const ExpertTensor& found : planned.layer.tensors) {
    AUTOEP_RETURN_IF_ERROR(CheckTensor(found).At(Where(planned.layer.path)));
    PlannedTensor tensor{found, planned.Attribute(found.role), planned.Path(found.role)};
    AUTOEP_RETURN_IF_ERROR(NameConstants(source, tensor.tensor));
    planned.tensors.push_back(std::move(tensor));
  }
  return Status();
}

std::string Digest(const Plan& plan, const std::string& source_digest) {
  std::string text = fmt::format("autoep plan 1\n{}\n{}\n", source_digest, plan.ep_size);
  for (const PlannedLayer& planned : plan.layers) {
    text += fmt::format("{} {}\n", planned.prefix, planned.layer.path);
    for (const contract::ExpertSlot& slot : planned.placement.experts) text += fmt::format("{},{};", slot.rank, slot.slot);
    text += "\n";
  }
  return Sha256Hex(text);
}

}  // namespace

int64_t PlannedTensor::ExpertBytes() const {
  int64_t bytes = contract::FindDtype(tensor.dtype)->bytes;
  for (size_t d = 1; d < tensor.shape.size(); ++d) bytes *= tensor.shape[d];
  return bytes;
}

std::string PlannedLayer::Path(const std::string& name) const {
  return layer.path.empty() ? Attribute(name) : layer.path + "." + Attribute(name);
}

int64_t Plan::RankBytes() const {
  int64_t bytes = 0;
  for (const PlannedLayer& planned : layers) {
    for (const PlannedTensor& tensor : planned.tensors) bytes += tensor.ExpertBytes() * (planned.layer.num_experts / ep_size);
  }
  return bytes;
}

std::vector<std::string> LayerNames(const std::vector<MoeLayer>& layers) {
  const auto counts = CountPaths(layers);
  std::map<std::string, int64_t> next;
  std::vector<std::string> names;
  for (const MoeLayer& layer : layers) {
    names.push_back(counts.at(layer.path) == 1 ? layer.path : fmt::format("{}[{}]", layer.path, next[layer.path]++));
  }
  return names;
}

Result<std::vector<MoeLayer>> DistinctLayers(const MoeModel& model, const Detection& detection, std::vector<std::string>* notes) {
  std::vector<MoeLayer> distinct;
  std::map<const void*, std::string> first_path;
  for (const MoeLayer& layer : detection.layers) {
    const auto module = FindModule(model.module, layer.path);
    if (!module) return Status(Code::kBug, fmt::format("a layer was detected in {}, which is no module", Where(layer.path)));
    const auto [entry, fresh] = first_path.emplace(module->_ivalue().get(), layer.path);
    if (fresh || entry->second == layer.path) {
      distinct.push_back(layer);
    } else {
      notes->push_back(
          fmt::format("{} is the same module as {}: its experts are sharded once", Where(layer.path), Where(entry->second)));
    }
  }
  return distinct;
}

namespace {

// A block that is wrong for other inputs would stay so, next to others that are right. In the graph of others (of a frozen
// model), nothing would tell its ops from such as the rewrite left behind.
Status CheckRefusals(const Detection& detection) {
  const auto beside = [&](const Refusal& refusal) {
    return std::any_of(detection.layers.begin(), detection.layers.end(),
                       [&](const MoeLayer& layer) { return layer.path == refusal.path; });
  };
  for (const Refusal& refusal : detection.refusals) {
    if (!refusal.predicate.starts_with("baked:") && !beside(refusal)) continue;
    return Status(Code::kNoMoe, fmt::format("{}: {}; nothing of the model is converted", Where(refusal.path), refusal.predicate));
  }
  return Status();
}

}  // namespace

Result<Plan> BuildPlan(const MoeModel& model, const Detection& detection, int64_t ep_size) {
  AUTOEP_RETURN_IF_ERROR(CheckRefusals(detection));
  Plan plan;
  plan.ep_size = ep_size;
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<MoeLayer> layers, DistinctLayers(model, detection, &plan.notes));
  if (layers.empty()) return Status(Code::kNoMoe, "no MoE layer was detected, so there is nothing to make expert-parallel");
  const std::vector<std::string> names = LayerNames(layers);
  AUTOEP_RETURN_IF_ERROR(CheckEpSize(layers, names, ep_size));
  const SourceTensors source(model);
  const auto counts = CountPaths(layers);
  std::map<std::string, int64_t> next;
  for (const MoeLayer& layer : layers) {
    PlannedLayer planned{layer, "autoep_", "", {}, {}};
    if (counts.at(layer.path) > 1) planned.prefix = fmt::format("autoep_{}_", next[layer.path]++);
    AUTOEP_ASSIGN_OR_RETURN(planned.placement, contract::LinearPlacement(layer.num_experts, ep_size));
    AUTOEP_RETURN_IF_ERROR(PlanTensors(source, planned));
    plan.layers.push_back(std::move(planned));
  }
  plan.digest = Digest(plan, model.archive->digest());
  for (size_t i = 0; i < names.size(); ++i) plan.layers[i].label = names[i] + "#" + plan.digest.substr(0, kLabelDigits);
  return plan;
}

}  // namespace autoep

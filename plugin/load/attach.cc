// SPDX-License-Identifier: Apache-2.0
// Assignments by attribute path. In a frozen model the parameters sit on the root, and the paths have one step.
#include "plugin/load/attach.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <optional>

#include "plugin/contract/dtype.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

Status Fail(const std::string& path, const std::string& what) {
  return Status(Code::kPlugin, fmt::format("{}: {} '{}', which autoep.json names: the model and the manifest are of different "
                                           "conversions; copy one directory whole",
                                           contract::kModelName, what, Printable(path)));
}

struct Slot {
  torch::jit::Module module;
  std::string name;
};

// The module that holds the attribute `path`, if it has that attribute.
std::optional<Slot> FindSlot(torch::jit::Module module, const std::string& path) {
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; begin = dot + 1, dot = path.find('.', begin)) {
    const std::string name = path.substr(begin, dot - begin);
    if (!module.hasattr(name) || !module.attr(name).isModule()) return std::nullopt;
    module = module.attr(name).toModule();
  }
  const std::string name = path.substr(begin);
  if (!module.hasattr(name)) return std::nullopt;
  return Slot{module, name};
}

Status AttachTensor(torch::jit::Module& model, const contract::ManifestTensor& tensor, const at::Tensor& value, at::Device device) {
  std::optional<Slot> slot = FindSlot(model, tensor.param);
  if (!slot || !slot->module.attr(slot->name).isTensor()) return Fail(tensor.param, "has no parameter");
  if (slot->module.attr(slot->name).toTensor().scalar_type() != contract::FindDtype(tensor.dtype)->type) {
    return Fail(tensor.param, "has another dtype than " + tensor.dtype + " in parameter");
  }
  slot->module.setattr(slot->name, value.to(device).detach().set_requires_grad(tensor.requires_grad));
  return {};
}

}  // namespace

Status AttachShard(torch::jit::Module& model, const contract::Manifest& manifest, const std::map<std::string, at::Tensor>& tensors,
                   at::Device device) {
  for (const contract::ManifestLayer& layer : manifest.layers) {
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      AUTOEP_RETURN_IF_ERROR(AttachTensor(model, tensor, tensors.at(tensor.param), device));
    }
  }
  return {};
}

Status SetGroup(torch::jit::Module& model, const contract::Manifest& manifest, const std::string& group) {
  for (const contract::ManifestLayer& layer : manifest.layers) {
    std::optional<Slot> slot = FindSlot(model, layer.group_attr);
    if (!slot || !slot->module.attr(slot->name).isString()) return Fail(layer.group_attr, "has no string attribute");
    slot->module.setattr(slot->name, group);
  }
  return {};
}

void MakeTrainable(torch::jit::Module& model) {
  for (const at::Tensor& parameter : model.parameters()) {
    if (at::isFloatingType(parameter.scalar_type())) parameter.set_requires_grad(true);
  }
}

}  // namespace autoep

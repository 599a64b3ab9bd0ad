// SPDX-License-Identifier: Apache-2.0
// The tensors of a model, by name.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "passes/model/moe_model.h"
#include "plugin/io/status.h"

namespace autoep {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// Every tensor that the module's attributes hold: parameters and buffers by their fully qualified names; those in lists,
// dicts and tuples with ".<position>" appended. Module order; an object that is reached twice is listed once.
std::vector<NamedTensor> AttributeTensors(const torch::jit::Module& module);
// Every tensor constant in the graphs of all methods of all modules.
std::vector<at::Tensor> GraphConstants(const torch::jit::Module& module);

// A tensor's name in the source archive: its attribute's, or "constant:<n>" for CONSTANTS.c<n>.
class SourceTensors {
 public:
  explicit SourceTensors(const MoeModel& model);
  // The tensor of that name; it holds storage over the archive.
  std::optional<at::Tensor> Find(const std::string& name) const;
  // The name of the constant that is `tensor`: same bytes, dtype, sizes and strides.
  std::optional<std::string> ConstantName(const at::Tensor& tensor) const;
  const std::vector<NamedTensor>& tensors() const { return tensors_; }  // attributes, then constants

 private:
  std::vector<NamedTensor> tensors_;
  std::map<std::string, size_t> by_name_;
};

// kInput if a tensor of the model reaches beyond its storage, which LibTorch does not check.
Status CheckTensorBounds(const MoeModel& model);

}  // namespace autoep

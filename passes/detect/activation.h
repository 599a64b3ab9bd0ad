// SPDX-License-Identifier: Apache-2.0
// What stands between an expert's first products and its last: act(gate) * up, or act(up).
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <optional>
#include <string>
#include <vector>

namespace autoep {

struct ActivationMatch {
  std::string name;  // contract/activation.h
  std::vector<double> args;
  torch::jit::Value* gate = nullptr;  // null: not gated
  torch::jit::Value* up = nullptr;
  std::vector<torch::jit::Node*> nodes;
};

// Every reading of `value` as an activation, the gated ones first; the caller takes the one whose gate and up are products.
// `dtype` is that of the experts' weights.
std::vector<ActivationMatch> MatchActivations(torch::jit::Value* value, at::ScalarType dtype);

}  // namespace autoep

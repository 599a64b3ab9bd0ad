// SPDX-License-Identifier: Apache-2.0
// The activations an expert may have: the names that stand in graphs and manifests.
#pragma once

#include <optional>
#include <string_view>

namespace autoep::contract {

enum class Activation { kSilu, kGelu, kGeluTanh, kRelu, kReluSquared, kClampedSwiglu };

struct ActivationSpec {
  Activation kind;
  bool gated;        // act(gate) * up with gate_up [., 2I, .]; else act(up) with up [., I, .]
  double shift = 0;  // kClampedSwiglu only: what is added to the clamped up
};

// "silu_gated", "gelu_gated", "gelu_tanh_gated", "relu_gated", "silu", "gelu", "gelu_tanh", "relu", "relu_squared",
// "clamped_swiglu" (gated; args alpha, limit: (clamp(u, -limit, limit) + 1) * g * sigmoid(alpha * g), g = clamp(gate, max=limit)),
// "limited_swiglu" (the same without the 1).
std::optional<ActivationSpec> ParseActivation(std::string_view name);

}  // namespace autoep::contract

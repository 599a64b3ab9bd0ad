// SPDX-License-Identifier: Apache-2.0
// The table of activation names.
#include "plugin/contract/activation.h"

#include <array>

namespace autoep::contract {
namespace {

struct Entry {
  std::string_view name;
  ActivationSpec spec;
};

constexpr std::array<Entry, 11> kActivations = {{{"silu_gated", {Activation::kSilu, true}},
                                                 {"gelu_gated", {Activation::kGelu, true}},
                                                 {"gelu_tanh_gated", {Activation::kGeluTanh, true}},
                                                 {"relu_gated", {Activation::kRelu, true}},
                                                 {"clamped_swiglu", {Activation::kClampedSwiglu, true, 1}},
                                                 {"limited_swiglu", {Activation::kClampedSwiglu, true, 0}},
                                                 {"silu", {Activation::kSilu, false}},
                                                 {"gelu", {Activation::kGelu, false}},
                                                 {"gelu_tanh", {Activation::kGeluTanh, false}},
                                                 {"relu", {Activation::kRelu, false}},
                                                 {"relu_squared", {Activation::kReluSquared, false}}}};

}  // namespace

std::optional<ActivationSpec> ParseActivation(std::string_view name) {
  for (const Entry& entry : kActivations) {
    if (entry.name == name) return entry.spec;
  }
  return std::nullopt;
}

}  // namespace autoep::contract

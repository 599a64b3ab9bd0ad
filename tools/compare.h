// SPDX-License-Identifier: Apache-2.0
// Compares a run of the source with a run of the converted model, token by token: routes first, then outputs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"
#include "tools/inputs.h"

namespace autoep {

// What one MoE layer chose for one call.
struct LayerRoute {
  std::string layer;   // module path, with or without "#<plan digest>"
  at::Tensor ids;      // [T, k] int64
  at::Tensor weights;  // [T, k] float, or undefined
};

struct LayerRows {
  std::string layer;
  int64_t rows = 0;  // that this rank's experts processed
};

// One call of a model on one rank.
struct RunRecord {
  NamedTensors outputs;
  std::vector<LayerRoute> routes;  // in the order in which the layers ran
  std::vector<LayerRows> rows;     // likewise; empty for a source
};

// Tokens whose experts differ by no more than rounding can explain.
struct Tolerance {
  double output = 0;    // of a token's outputs, relative to the largest output
  double near_tie = 0;  // of two experts' weights, relative to the token's largest weight

  static Tolerance For(at::ScalarType dtype);  // of the least precise expert weights
};

inline constexpr double kMaxFlips = 0.05;  // of all tokens

struct Comparison {
  int64_t tokens = 0;
  int64_t flips = 0;        // tokens with another expert at a near tie
  int64_t after_flips = 0;  // other tokens of their sequences, which attention may have changed: not held to the tolerance
  int64_t exempt_over = 0;  // of the latter, how many exceed it
  double max_error = 0;     // of the tokens held to it
  std::string first_layer;  // the first whose routes or weights differ by more than rounding; "" if none
  std::string failure;      // a sentence, or ""
};

// `sequence`: tokens in a row that may see each other; 1 for a block alone. Tokens are counted by the routes; an output
// whose leading dimensions hold another number of rows is taken as a whole.
Comparison Compare(const RunRecord& source, const RunRecord& converted, int64_t sequence, const Tolerance& tolerance);

// The rows of each rank's experts are those that the routes of all ranks send there. `ranks` in the order of ranks. kVerify.
Status CheckRows(const std::vector<RunRecord>& ranks, const contract::Manifest& manifest);

// "model.layers.0.mlp" of "model.layers.0.mlp#0123"; "(root)" for the empty path.
std::string LayerName(const std::string& label);

}  // namespace autoep

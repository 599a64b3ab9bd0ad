// SPDX-License-Identifier: Apache-2.0
// How long a rank's experts take with tokens that came to it, by a model of an H200 and of uniform routing: what every rank finds
// alike, for choices that all must make alike. Good for comparing ways to do the same work.
#pragma once

#include <cstdint>

#include "plugin/ops/experts/experts.h"

namespace autoep::ops {

class PassTime {
 public:
  PassTime(const ExpertsCall& experts, int64_t choices, int64_t ranks);

  // Seconds that so many tokens take in one go.
  double operator()(int64_t tokens) const;

 private:
  double experts_, expert_bytes_;
  double rows_;      // of a token that came
  double products_;  // seconds of a row's
  double wave_;
};

}  // namespace autoep::ops

// SPDX-License-Identifier: Apache-2.0
// Products or weights, whichever take longer, and what is lost at the ends of tiles.
#include "plugin/ops/moe/pass_time.h"

#include <algorithm>
#include <cmath>

namespace autoep::ops {
namespace {

constexpr double kMemory = 4e12;      // bytes a second
constexpr double kProducts = 700e12;  // floating-point operations a second
constexpr double kLaunches = 20e-6;
constexpr double kLostRows = 64;           // of an expert's last tile
constexpr double kWave = 132 * 128 * 256;  // results that all multiprocessors have in hand at a time

}  // namespace

PassTime::PassTime(const ExpertsCall& experts, int64_t choices, int64_t ranks) {
  const double slots = experts.gate_up.size(0), elements = experts.gate_up.numel() + experts.down.numel();
  experts_ = std::max(slots, 1.0);
  expert_bytes_ = (experts.gate_up.nbytes() + experts.down.nbytes()) / experts_;
  rows_ = choices / (ranks * (1 - std::pow(1 - 1.0 / ranks, choices)));
  products_ = 2 * elements / experts_ / kProducts;
  wave_ = 2 * kWave * (experts.gate_up.size(2) + experts.down.size(2)) / kProducts;
}

double PassTime::operator()(int64_t tokens) const {
  if (tokens == 0) return 0;
  const double rows = tokens * rows_, used = std::min(experts_, rows);
  const double products = (rows + kLostRows * used) * products_ + wave_ / 2;  // half of the last wave is idle
  return kLaunches + std::max(products, used * expert_bytes_ / kMemory);
}

}  // namespace autoep::ops

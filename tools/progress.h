// SPDX-License-Identifier: Apache-2.0
// Progress of one long step on stderr: a line redrawn on a terminal, a plain line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "tools/console.h"

namespace autoep {

class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  // `total` bytes; 0 when unknown.
  Progress(Console& console, std::string step, int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(int64_t done);

 private:
  std::string Line(int64_t done) const;

  Console& console_;
  std::string step_;
  int64_t total_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point last_;
};

}  // namespace autoep

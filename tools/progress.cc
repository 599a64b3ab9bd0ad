// SPDX-License-Identifier: Apache-2.0
// Progress lines.
#include "tools/progress.h"

#include <fmt/format.h>

#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr auto kTerminalInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);

}  // namespace

Progress::Progress(Console& console, std::string step, int64_t total)
    : console_(console), step_(std::move(step)), total_(total), terminal_(console.err_is_terminal()), last_(Clock::now()) {}

Progress::~Progress() {
  if (drawn_) fmt::print(console_.err(), "\r\033[K");
}

void Progress::Update(int64_t done) {
  if (console_.quiet()) return;
  const Clock::time_point now = Clock::now();
  if (terminal_) {
    if (drawn_ && now - last_ < kTerminalInterval) return;
    fmt::print(console_.err(), "\r\033[K{}", Line(done));
    std::fflush(console_.err());
    drawn_ = true;
  } else {
    if (now - last_ < kPlainInterval) return;
    fmt::print(console_.err(), "{}\n", Line(done));
  }
  last_ = now;
}

std::string Progress::Line(int64_t done) const {
  if (total_ <= 0) return fmt::format("{}: {}", step_, HumanBytes(done));
  return fmt::format("{}: {} of {} ({} %)", step_, HumanBytes(done), HumanBytes(total_), 100 * done / total_);
}

}  // namespace autoep

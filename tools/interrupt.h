// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM, and SIGBUS, which means that a mapped file was cut short: a thread waits for them, undoes what is under
// way (staging directories, child processes) and ends the process with 130, 143 or 3.
#pragma once

#include <cstdint>
#include <functional>

namespace autoep {

// Blocks SIGINT and SIGTERM in the calling thread, and so in every thread it starts later, and starts the waiting thread. Call
// it first in main.
void StartInterruptHandling();

// While it lives, an interrupt calls `undo` (on the waiting thread, once) before the process ends. Destruction waits for a
// running undo.
class OnInterrupt {
 public:
  explicit OnInterrupt(std::function<void()> undo);
  ~OnInterrupt();
  OnInterrupt(const OnInterrupt&) = delete;
  OnInterrupt& operator=(const OnInterrupt&) = delete;

 private:
  int64_t id_;
};

// While it lives, an interrupt waits. For short steps that must not be left half done.
class HoldInterrupts {
 public:
  HoldInterrupts();
  ~HoldInterrupts();
  HoldInterrupts(const HoldInterrupts&) = delete;
  HoldInterrupts& operator=(const HoldInterrupts&) = delete;
};

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The waiting thread and the list of what it undoes.
#include "tools/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <thread>

#include "plugin/io/status.h"

namespace autoep {
namespace {

struct UndoList {
  std::recursive_mutex mutex;  // what holds interrupts may add and drop undos
  int64_t next = 0;
  std::map<int64_t, std::function<void()>> actions;
};

UndoList& Undos() {
  static auto* list = new UndoList;
  return *list;
}

sigset_t InterruptSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

void WaitForSignal() {
  const sigset_t signals = InterruptSignals();
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  // The lock is never given back: nothing may be begun or published after the undo.
  Undos().mutex.lock();
  auto& actions = Undos().actions;
  for (auto action = actions.rbegin(); action != actions.rend(); ++action) action->second();
  const Code code = signal == SIGINT ? Code::kInterrupted : Code::kTerminated;
  static constexpr char kMessage[] = "interrupted\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(static_cast<int>(code));
}

}  // namespace

void StartInterruptHandling() {
  const sigset_t signals = InterruptSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(WaitForSignal).detach();
}

OnInterrupt::OnInterrupt(std::function<void()> undo) {
  const std::lock_guard lock(Undos().mutex);
  id_ = Undos().next++;
  Undos().actions.emplace(id_, std::move(undo));
}

OnInterrupt::~OnInterrupt() {
  const std::lock_guard lock(Undos().mutex);
  Undos().actions.erase(id_);
}

HoldInterrupts::HoldInterrupts() { Undos().mutex.lock(); }

HoldInterrupts::~HoldInterrupts() { Undos().mutex.unlock(); }

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The waiting thread and the list of what it undoes.
#include "tools/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string_view>
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

// What a thread that met SIGBUS sends: SIGBUS itself cannot be waited for.
int CutShortSignal() { return SIGRTMIN; }

sigset_t InterruptSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, CutShortSignal());
  return signals;
}

struct Ending {
  Code code;
  std::string_view message;
};

Ending EndingOf(int signal) {
  if (signal == SIGINT) return {Code::kInterrupted, "interrupted\n"};
  if (signal == SIGTERM) return {Code::kTerminated, "interrupted\n"};
  return {Code::kInput, "error: a file was cut short while it was being read; run again when nothing writes to it\n"};
}

void WaitForSignal() {
  const sigset_t signals = InterruptSignals();
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  const Ending ending = EndingOf(signal);
  // The lock is never given back: nothing may be begun or published after the undo. A thread that met SIGBUS may hold it, and
  // waits for ever.
  const bool locked = signal == CutShortSignal() ? Undos().mutex.try_lock() : (Undos().mutex.lock(), true);
  if (locked) {
    auto& actions = Undos().actions;
    for (auto action = actions.rbegin(); action != actions.rend(); ++action) action->second();
  }
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, ending.message.data(), ending.message.size());
  _exit(static_cast<int>(ending.code));
}

void OnBusError(int) {
  kill(getpid(), CutShortSignal());
  for (;;) pause();
}

}  // namespace

void StartInterruptHandling() {
  const sigset_t signals = InterruptSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGBUS, OnBusError);
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

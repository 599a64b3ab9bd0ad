// SPDX-License-Identifier: Apache-2.0
// An interrupted process undoes what is under way, newest first, and exits with 130 or 143.
#include "tools/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

namespace autoep {
namespace {

struct Outcome {
  int exit_code = -1;
  std::string written;  // by the child, to its pipe
};

// Runs `body` in a child that handles interrupts; `body` gets the pipe's descriptor and signals its own process.
Outcome RunChild(const std::function<void(int)>& body) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    StartInterruptHandling();
    body(ends[1]);
    _exit(0);
  }
  close(ends[1]);
  Outcome outcome;
  char buffer[64];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) outcome.written.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int state = 0;
  waitpid(child, &state, 0);
  if (WIFEXITED(state)) outcome.exit_code = WEXITSTATUS(state);
  return outcome;
}

std::function<void()> Writer(int fd, const char* letter) {
  return [fd, letter] { EXPECT_EQ(write(fd, letter, 1), 1); };
}

[[noreturn]] void SignalAndWait(int signal) {
  kill(getpid(), signal);
  for (;;) pause();
}

TEST(InterruptTest, SigintUndoesNewestFirst) {
  const Outcome outcome = RunChild([](int fd) {
    OnInterrupt first(Writer(fd, "1"));
    OnInterrupt second(Writer(fd, "2"));
    SignalAndWait(SIGINT);
  });
  EXPECT_EQ(outcome.exit_code, 130);
  EXPECT_EQ(outcome.written, "21");
}

TEST(InterruptTest, SigtermHasItsOwnCode) {
  EXPECT_EQ(RunChild([](int) { SignalAndWait(SIGTERM); }).exit_code, 143);
}

TEST(InterruptTest, WhatIsFinishedIsNotUndone) {
  const Outcome outcome = RunChild([](int fd) {
    { OnInterrupt done(Writer(fd, "x")); }
    SignalAndWait(SIGINT);
  });
  EXPECT_EQ(outcome.exit_code, 130);
  EXPECT_EQ(outcome.written, "");
}

TEST(InterruptTest, AHeldInterruptWaitsAndThenHappens) {
  const Outcome outcome = RunChild([](int fd) {
    {
      const HoldInterrupts hold;
      OnInterrupt inside(Writer(fd, "x"));
      kill(getpid(), SIGTERM);
      Writer(fd, "h")();
    }
    for (;;) pause();
  });
  EXPECT_EQ(outcome.exit_code, 143);
  EXPECT_EQ(outcome.written, "h");
}

TEST(InterruptTest, AFileCutShortUndoesAndSaysSo) {
  const Outcome outcome = RunChild([](int fd) {
    OnInterrupt staging(Writer(fd, "x"));
    dup2(fd, STDERR_FILENO);
    char path[] = "/tmp/cut-short-XXXXXX";
    const int file = mkstemp(path);
    EXPECT_EQ(ftruncate(file, 4096), 0);
    const auto* bytes = static_cast<const volatile char*>(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file, 0));
    unlink(path);
    EXPECT_EQ(ftruncate(file, 0), 0);
    [[maybe_unused]] const char byte = bytes[0];
  });
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_EQ(outcome.written, "xerror: a file was cut short while it was being read; run again when nothing writes to it\n");
}

}  // namespace
}  // namespace autoep

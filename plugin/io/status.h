// SPDX-License-Identifier: Apache-2.0
// Status and Result<T>: how every part of autoep reports failure. A failure carries a code, which is also the process's exit
// code, and one sentence: what failed, where, what was expected, what to do.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace autoep {

// The values are the exit codes of the command line.
enum class Code {
  kOk = 0,
  kDifferent = 1,    // compared and different
  kUsage = 2,        // usage or configuration
  kInput = 3,        // input unreadable or malformed
  kNoMoe = 4,        // nothing that can be rewritten
  kPlan = 5,         // the plan is impossible
  kVerify = 6,       // verification failed
  kOutput = 7,       // the output could not be written
  kPlugin = 8,       // plugin, ABI, shard or group
  kBatch = 9,        // some jobs of a batch failed
  kBug = 70,         // a fault of autoep itself
  kInterrupted = 130,
  kTerminated = 143,
};

// "INPUT", "NO_MOE", ...: the name used in JSON.
std::string_view CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same failure with "where: " before its sentence.
  Status At(std::string_view where) const;

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {}

  bool ok() const { return state_.index() == 0; }
  // Precondition for value(), * and ->: ok().
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  Status status() const { return ok() ? Status() : std::get<1>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace autoep

// Returns the failure of `expr`, a Status, from the calling function.
#define AUTOEP_RETURN_IF_ERROR(expr)                    \
  do {                                                  \
    ::autoep::Status autoep_status_ = (expr);           \
    if (!autoep_status_.ok()) return autoep_status_;    \
  } while (0)

#define AUTOEP_CONCAT_(a, b) a##b
#define AUTOEP_CONCAT(a, b) AUTOEP_CONCAT_(a, b)
// Declares `lhs` from `expr`, a Result, or returns its failure.
#define AUTOEP_ASSIGN_OR_RETURN(lhs, expr) AUTOEP_ASSIGN_OR_RETURN_(AUTOEP_CONCAT(autoep_result_, __LINE__), lhs, expr)
#define AUTOEP_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.status();            \
  lhs = std::move(tmp).value()

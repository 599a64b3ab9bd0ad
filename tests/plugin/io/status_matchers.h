// SPDX-License-Identifier: Apache-2.0
// Matchers for Status and Result. There is none for "any failure": a test names the code and words of the sentence.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "plugin/io/status.h"

namespace autoep {

inline void PrintTo(const Status& status, std::ostream* out) {
  *out << CodeName(status.code()) << " \"" << status.message() << '"';
}

template <typename T>
void PrintTo(const Result<T>& result, std::ostream* out) {
  PrintTo(result.status(), out);
}

namespace testing_internal {
inline Status ToStatus(const Status& status) { return status; }
template <typename T>
Status ToStatus(const Result<T>& result) {
  return result.status();
}
}  // namespace testing_internal

MATCHER(IsOk, "is ok") { return testing_internal::ToStatus(arg).ok(); }

// The code, and a sentence that contains `words`.
MATCHER_P2(StatusIs, code, words, "fails with " + std::string(CodeName(code)) + " and \"" + std::string(words) + "\"") {
  const Status status = testing_internal::ToStatus(arg);
  *result_listener << "whose sentence is \"" << status.message() << '"';
  return status.code() == code && status.message().find(words) != std::string::npos;
}

}  // namespace autoep

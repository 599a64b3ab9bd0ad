// SPDX-License-Identifier: Apache-2.0
// One change to a TorchScript source, for tests of what a changed line does.
#pragma once

#include <gtest/gtest.h>

#include <string>

namespace autoep::testing {

// Replaces `from`, which must occur, by `to`.
inline std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

}  // namespace autoep::testing

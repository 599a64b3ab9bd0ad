// SPDX-License-Identifier: Apache-2.0
// The exit codes are a promise: their numbers and order may not drift.
#include "tools/exit_codes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace autoep {
namespace {

TEST(ExitCodesTest, TheNumbersAreFixed) {
  std::vector<int> numbers;
  for (const ExitCode& row : ExitCodes()) numbers.push_back(static_cast<int>(row.code));
  EXPECT_THAT(numbers, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 70, 130, 143));
}

TEST(ExitCodesTest, EveryCodeHasItsOwnName) {
  std::vector<std::string_view> names;
  for (const ExitCode& row : ExitCodes()) {
    EXPECT_FALSE(row.meaning.empty());
    EXPECT_THAT(names, ::testing::Not(::testing::Contains(CodeName(row.code))));
    names.push_back(CodeName(row.code));
  }
}

TEST(ExitCodesTest, HelpHasALineForEach) {
  EXPECT_THAT(ExitCodeHelp(), ::testing::StartsWith("Exit codes:\n    0  done\n    1  compared, and different\n"));
  EXPECT_THAT(ExitCodeHelp(), ::testing::HasSubstr("\n  143  terminated (SIGTERM)\n"));
}

}  // namespace
}  // namespace autoep

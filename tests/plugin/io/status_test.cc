// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/status.h"

#include <memory>
#include <set>

#include "tests/plugin/io/status_matchers.h"

namespace autoep {
namespace {

using ::testing::Not;

Result<int> Half(int value) {
  if (value % 2 != 0) return Status(Code::kInput, "odd");
  return value / 2;
}

Result<int> Quarter(int value) {
  AUTOEP_ASSIGN_OR_RETURN(const int half, Half(value));
  return Half(half);
}

Status BothEven(int a, int b) {
  AUTOEP_RETURN_IF_ERROR(Half(a).status());
  AUTOEP_RETURN_IF_ERROR(Half(b).status().At("second"));
  return Status();
}

TEST(Status, DefaultIsOk) {
  EXPECT_THAT(Status(), IsOk());
  EXPECT_EQ(Status().message(), "");
}

TEST(Status, AtPutsThePlaceBeforeTheSentenceAndLeavesOkAlone) {
  const Status failure = Status(Code::kPlan, "cannot be").At("layer 3");
  EXPECT_EQ(failure.code(), Code::kPlan);
  EXPECT_EQ(failure.message(), "layer 3: cannot be");
  EXPECT_EQ(Status().At("layer 3").message(), "");
}

TEST(Status, EveryCodeHasAnotherName) {
  std::set<std::string_view> names;
  const Code codes[] = {Code::kOk,   Code::kDifferent,   Code::kUsage,     Code::kInput,  Code::kNoMoe,
                        Code::kPlan, Code::kVerify,      Code::kOutput,    Code::kPlugin, Code::kBatch,
                        Code::kBug,  Code::kInterrupted, Code::kTerminated};
  for (const Code code : codes) EXPECT_TRUE(names.insert(CodeName(code)).second) << CodeName(code);
  EXPECT_EQ(CodeName(Code::kNoMoe), "NO_MOE");
}

TEST(Result, HoldsAValueOrAFailure) {
  EXPECT_EQ(*Half(4), 2);
  EXPECT_THAT(Half(3), StatusIs(Code::kInput, "odd"));
}

TEST(Result, MacrosReturnTheFailure) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_THAT(Quarter(6), StatusIs(Code::kInput, "odd"));
  EXPECT_THAT(BothEven(2, 4), IsOk());
  EXPECT_THAT(BothEven(2, 3), StatusIs(Code::kInput, "second: odd"));
  EXPECT_THAT(BothEven(1, 2), Not(StatusIs(Code::kInput, "second")));
}

TEST(Result, HandsOnWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  const std::unique_ptr<int> owned = std::move(result).value();
  EXPECT_EQ(*owned, 7);
}

}  // namespace
}  // namespace autoep

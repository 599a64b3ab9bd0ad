// SPDX-License-Identifier: Apache-2.0
// Unknown options and subcommands are named, with a suggestion, before CLI11 sees them.
#include "tools/arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckWordsTest : public ::testing::Test {
 protected:
  CheckWordsTest() {
    app_.add_option("--color", color_);
    CLI::App* convert = app_.add_subcommand("convert", "");
    convert->add_option("MODEL", model_);
    convert->add_option("--ep-size", ep_size_);
    convert->add_option("-o,--output", output_);
    convert->add_flag("--json", json_);
    CLI::App* passes = app_.add_subcommand("passes", "");
    passes->add_subcommand("list", "");
    app_.add_subcommand("_rank", "")->group("");
  }

  std::string Message(const std::vector<std::string>& words) {
    const Status status = CheckWords(app_, words);
    EXPECT_EQ(status.code(), Code::kUsage);
    return status.message();
  }

  CLI::App app_{"", "autoep"};
  std::string color_, model_, output_;
  int ep_size_ = 0;
  bool json_ = false;
};

TEST_F(CheckWordsTest, KnownWordsPass) {
  EXPECT_TRUE(CheckWords(app_, {"convert", "m.pt", "--ep-size", "2", "-o", "out", "--json", "--color=never"}).ok());
  EXPECT_TRUE(CheckWords(app_, {"--color", "never", "passes", "list"}).ok());
  EXPECT_TRUE(CheckWords(app_, {"_rank"}).ok());
}

TEST_F(CheckWordsTest, MisspeltOptionIsNamedWithASuggestion) {
  const std::string message = Message({"convert", "m.pt", "--ep-siz", "2"});
  EXPECT_THAT(message, HasSubstr("no option '--ep-siz' (did you mean '--ep-size'?)"));
  EXPECT_THAT(message, HasSubstr("autoep convert --help"));
}

TEST_F(CheckWordsTest, MisspeltOptionWithAttachedValue) {
  EXPECT_THAT(Message({"convert", "--ep_size=2"}), HasSubstr("no option '--ep_size' (did you mean '--ep-size'?)"));
}

TEST_F(CheckWordsTest, AnAttachedValueDoesNotHideTheNextWord) {
  EXPECT_THAT(Message({"convert", "--ep-size=2", "--jsn"}), HasSubstr("did you mean '--json'?"));
}

TEST_F(CheckWordsTest, AnEmptyAttachedValueIsRefused) {
  EXPECT_THAT(Message({"convert", "--ep-size=", "m.pt"}), HasSubstr("--ep-size cannot be ''"));
}

TEST_F(CheckWordsTest, UnknownShortOption) { EXPECT_THAT(Message({"convert", "-x"}), HasSubstr("no option '-x'")); }

TEST_F(CheckWordsTest, OptionOfAnotherSubcommandIsUnknown) {
  EXPECT_THAT(Message({"passes", "list", "--ep-size", "2"}), HasSubstr("'autoep passes list' has no option '--ep-size'"));
}

TEST_F(CheckWordsTest, MisspeltSubcommand) {
  EXPECT_THAT(Message({"convrt", "m.pt"}), HasSubstr("no subcommand 'convrt' (did you mean 'convert'?)"));
  EXPECT_THAT(Message({"passes", "lst"}), HasSubstr("'autoep passes' has no subcommand 'lst'"));
}

TEST_F(CheckWordsTest, HiddenSubcommandsAreNotOffered) {
  EXPECT_THAT(Message({"_rnk"}), ::testing::Not(HasSubstr("'_rank'")));
}

TEST_F(CheckWordsTest, ANegativeNumberIsAValue) {
  EXPECT_TRUE(CheckWords(app_, {"convert", "m.pt", "--ep-size", "-1"}).ok());
}

TEST_F(CheckWordsTest, AnOptionsValueMayLookLikeAnOption) {
  EXPECT_TRUE(CheckWords(app_, {"convert", "-o", "--odd-name", "m.pt"}).ok());
}

TEST_F(CheckWordsTest, WordsAfterTwoDashesAreNotChecked) { EXPECT_TRUE(CheckWords(app_, {"convert", "--", "--m.pt"}).ok()); }

TEST(CheckChoiceTest, SuggestsTheClosest) {
  EXPECT_TRUE(CheckChoice("--layout", "shared", {"shared", "per-rank"}).ok());
  const Status status = CheckChoice("--layout", "per_rank", {"shared", "per-rank"});
  EXPECT_EQ(status.code(), Code::kUsage);
  EXPECT_EQ(status.message(), "--layout cannot be 'per_rank' (did you mean 'per-rank'?); it takes shared and per-rank");
}

TEST(ParseWholeTest, TakesDecimalNumbersOnly) {
  EXPECT_EQ(*ParseWhole("--n", "12", 1), 12);
  EXPECT_EQ(*ParseWhole("--n", "0", 0), 0);
  for (const char* text : {"", "two", "2.5", "1e3", "0x2", " 2", "2 ", "+2", "-1", "0", "99999999999999999999"}) {
    const auto result = ParseWhole("--n", text, 1);
    EXPECT_EQ(result.status().code(), Code::kUsage) << text;
    EXPECT_THAT(result.status().message(), HasSubstr("--n cannot be '" + std::string(text) + "'; it takes a whole number from 1 on"));
  }
}

TEST(SplitCommasTest, DropsEmptyParts) { EXPECT_THAT(SplitCommas("a,,b,"), ElementsAre("a", "b")); }

}  // namespace
}  // namespace autoep

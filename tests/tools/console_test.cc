// SPDX-License-Identifier: Apache-2.0
// Streams, colour rules and progress of the console.
#include "tools/console.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tools/progress.h"

namespace autoep {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string Contents(std::FILE* file) {
  std::fflush(file);
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), file), text.size());
  return text;
}

class ConsoleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"NO_COLOR", "CLICOLOR_FORCE", "TERM"}) unsetenv(name);
    out_ = std::tmpfile();
    err_ = std::tmpfile();
  }
  void TearDown() override {
    std::fclose(out_);
    std::fclose(err_);
  }

  std::FILE* out_ = nullptr;
  std::FILE* err_ = nullptr;
};

TEST_F(ConsoleTest, DataAndTextGoToTheirStreams) {
  Console console(out_, err_);
  console.Print("data\n");
  console.Note("note");
  console.Error("it broke");
  EXPECT_TRUE(console.printed());
  EXPECT_EQ(Contents(out_), "data\n");
  EXPECT_EQ(Contents(err_), "note\nerror: it broke\n");
}

TEST_F(ConsoleTest, QuietKeepsErrors) {
  Console console(out_, err_);
  console.SetQuiet(true);
  console.Note("note");
  console.Error("it broke");
  EXPECT_EQ(Contents(err_), "error: it broke\n");
}

TEST_F(ConsoleTest, AnErrorIsOneLineWithoutControlCharacters) {
  Console console(out_, err_);
  console.Error("two\nlines \x1b[31mred\x7f");
  EXPECT_EQ(Contents(err_), "error: two lines  [31mred \n");
}

TEST_F(ConsoleTest, NoColourIntoAFile) { EXPECT_EQ(Console(out_, err_).Paint(Style::kRed, "x"), "x"); }

TEST_F(ConsoleTest, ForcedColour) {
  setenv("CLICOLOR_FORCE", "1", 1);
  EXPECT_EQ(Console(out_, err_).Paint(Style::kRed, "x"), "\033[31mx\033[0m");
  setenv("CLICOLOR_FORCE", "0", 1);
  EXPECT_EQ(Console(out_, err_).Paint(Style::kRed, "x"), "x");
}

TEST_F(ConsoleTest, NoColorWinsOverForce) {
  setenv("CLICOLOR_FORCE", "1", 1);
  setenv("NO_COLOR", "1", 1);
  EXPECT_EQ(Console(out_, err_).Paint(Style::kRed, "x"), "x");
}

TEST_F(ConsoleTest, TheOptionWinsOverTheEnvironment) {
  setenv("NO_COLOR", "1", 1);
  Console console(out_, err_);
  console.SetColor(When::kAlways);
  EXPECT_EQ(console.Paint(Style::kBold, "x"), "\033[1mx\033[0m");
  console.SetColor(When::kNever);
  EXPECT_EQ(console.Paint(Style::kBold, "x"), "x");
}

TEST_F(ConsoleTest, LostOutputIsReported) {
  std::FILE* full = std::fopen("/dev/full", "w");
  ASSERT_NE(full, nullptr);
  Console console(full, err_);
  console.Print("data");
  const Status status = console.Finish();
  EXPECT_EQ(status.code(), Code::kOutput);
  EXPECT_THAT(status.message(), HasSubstr("No space left on device"));
  std::fclose(full);
}

TEST_F(ConsoleTest, ProgressIsSilentInAFileWhileAStepIsShort) {
  Console console(out_, err_);
  {
    Progress progress(console, "writing", 100);
    progress.Update(50);
    progress.Update(100);
  }
  EXPECT_THAT(Contents(err_), IsEmpty());
}

TEST(PluralTest, CountsAndNouns) {
  EXPECT_EQ(Plural(1, "layer"), "1 layer");
  EXPECT_EQ(Plural(0, "layer"), "0 layers");
  EXPECT_EQ(Plural(2, "layer"), "2 layers");
  EXPECT_EQ(Plural(1, "pass"), "1 pass");
  EXPECT_EQ(Plural(2, "pass"), "2 passes");
}

}  // namespace
}  // namespace autoep

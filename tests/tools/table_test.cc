// SPDX-License-Identifier: Apache-2.0
// Table layout: widths, alignment, and names that would reach the terminal raw.
#include "tools/table.h"

#include <gtest/gtest.h>

namespace autoep {
namespace {

class TableTest : public ::testing::Test {
 protected:
  TableTest() { console_.SetColor(When::kNever); }
  Console console_;
};

TEST_F(TableTest, ColumnsAreAsWideAsTheirWidestCell) {
  Table table({{"layer"}, {"n", Align::kRight}, {"end"}});
  table.AddRow({"a", "100", "x"});
  table.AddRow({"longer name", "7", ""});
  EXPECT_EQ(table.Render(console_),
            "layer          n  end\n"
            "a            100  x\n"
            "longer name    7\n");
}

TEST_F(TableTest, WidthCountsCodePoints) {
  Table table({{"a"}, {"b"}});
  table.AddRow({"éé", "1"});
  table.AddRow({"xxx", "2"});
  EXPECT_EQ(table.Render(console_, 1),
            " a    b\n"
            " éé   1\n"
            " xxx  2\n");
}

TEST_F(TableTest, ControlCharactersAreEscaped) {
  Table table({{"a"}});
  table.AddRow({"x\x1b[2J\ny"});
  EXPECT_EQ(table.Render(console_), "a\nx\\x1b[2J\\x0ay\n");
}

TEST_F(TableTest, MissingCellsAreEmpty) {
  Table table({{"a"}, {"b"}});
  table.AddRow({"1"});
  EXPECT_EQ(table.Render(console_), "a  b\n1\n");
}

TEST_F(TableTest, TheHeaderIsBold) {
  console_.SetColor(When::kAlways);
  Table table({{"a"}});
  table.AddRow({"1"});
  EXPECT_EQ(table.Render(console_), "\033[1ma\033[0m\n1\n");
}

}  // namespace
}  // namespace autoep

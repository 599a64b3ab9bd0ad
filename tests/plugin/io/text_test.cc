// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/text.h"

#include <gtest/gtest.h>

namespace autoep {
namespace {

TEST(Text, IsUtf8FollowsRfc3629) {
  for (const char* good : {"", "plain", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"}) {
    EXPECT_TRUE(IsUtf8(good)) << good;
  }
  const char* const bad[] = {"\x80",
                             "\xC3",
                             "\xC0\xAF",
                             "\xC1\xBF",
                             "\xE0\x80\x80",
                             "\xED\xA0\x80",
                             "\xF0\x80\x80\x80",
                             "\xF4\x90\x80\x80",
                             "\xF8\x88\x80\x80\x80",
                             "\xE2\x82",
                             "a\xFF"};
  for (const char* text : bad) EXPECT_FALSE(IsUtf8(text));
}

TEST(Text, PrintableLeavesNothingThatActsOnATerminal) {
  EXPECT_EQ(Printable("layers.0.mlp"), "layers.0.mlp");
  EXPECT_EQ(Printable("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(Printable("\x1B[31mred\n"), "\\x1b[31mred\\x0a");
  EXPECT_EQ(Printable(std::string_view("a\0b\x7F", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(Printable("\xFF\xC3"), "\\xff\\xc3");
  EXPECT_EQ(Printable("\xE2\x80\xAEtxt"), "\\u{202e}txt");  // right-to-left override
  EXPECT_EQ(Printable("\xC2\x9B"
                      "31m"),
            "\\u{009b}31m");  // the one-byte form of ESC [
}

TEST(Text, PrintableIsCut) {
  const std::string out = Printable(std::string(5000, 'a'));
  EXPECT_EQ(out, std::string(200, 'a') + "...");
  EXPECT_EQ(Printable(std::string(200, 'a')), std::string(200, 'a'));
}

TEST(Text, DidYouMean) {
  const std::vector<std::string> known = {"mixtral", "qwen3_moe", "deepseek_v3"};
  EXPECT_EQ(DidYouMean("mixtrl", known), " (did you mean 'mixtral'?)");
  EXPECT_EQ(DidYouMean("qwen3moe", known), " (did you mean 'qwen3_moe'?)");
  EXPECT_EQ(DidYouMean("llama", known), "");
  EXPECT_EQ(DidYouMean("ip", {"ep"}), " (did you mean 'ep'?)");
  EXPECT_EQ(DidYouMean("xy", {"ep"}), "");
  EXPECT_EQ(DidYouMean("mixtral", {}), "");
  EXPECT_EQ(DidYouMean(std::string(1 << 20, 'm'), known), "");
}

TEST(Text, JoinWords) {
  EXPECT_EQ(JoinWords({}), "");
  EXPECT_EQ(JoinWords({"a"}), "a");
  EXPECT_EQ(JoinWords({"a", "b"}), "a and b");
  EXPECT_EQ(JoinWords({"a", "b", "c"}), "a, b and c");
}

TEST(Text, HumanBytes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{100} << 30), "100.0 GiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16.0 EiB");
}

}  // namespace
}  // namespace autoep

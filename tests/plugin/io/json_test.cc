// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/json.h"

#include "tests/plugin/io/status_matchers.h"

namespace autoep {
namespace {

Result<Json> Parse(std::string_view text) { return ParseJson(text, "f.json"); }

TEST(ParseJson, TakesWhatJsonIs) {
  const auto json = Parse(R"( {"a": [1, -2, 3.5, true, null, "x\u00e9"], "b": {"c": {}}} )");
  ASSERT_THAT(json, IsOk());
  EXPECT_EQ((*json)["a"][1], -2);
  EXPECT_EQ((*json)["a"][5], "x\xC3\xA9");
  EXPECT_EQ(*Parse("18446744073709551615"), 18446744073709551615u);
  EXPECT_EQ(*Parse("[]"), Json::array());
}

struct BadText {
  std::string text;
  std::string sentence;
};

class ParseJsonRefuses : public ::testing::TestWithParam<BadText> {};

TEST_P(ParseJsonRefuses, WithItsSentence) { EXPECT_THAT(Parse(GetParam().text), StatusIs(Code::kInput, GetParam().sentence)); }

INSTANTIATE_TEST_SUITE_P(All, ParseJsonRefuses,
                         ::testing::Values(BadText{R"({"a": 1, "a": 1})", "f.json: the key 'a' occurs twice"},
                                           BadText{R"({"x": [{}, {"y": {"a": 1, "a": 2}}]})", "'a' occurs twice in x[1].y"},
                                           BadText{"18446744073709551616", "f.json: the number 18446744073709551616 is too large"},
                                           BadText{"-9223372036854775809", "too large"}, BadText{"1e999", "too large"},
                                           BadText{"", "f.json:1:1: not valid JSON"},
                                           BadText{"{\n  \"a\": ]", "f.json:2:8: not valid JSON"},
                                           BadText{"{} {}", "not valid JSON"}, BadText{"{\"a\": 1,}", "not valid JSON"},
                                           BadText{"[1] // no", "not valid JSON"}, BadText{"[NaN]", "not valid JSON"},
                                           BadText{"[012]", "not valid JSON"}, BadText{"\"\xFF\"", "not valid JSON"},
                                           BadText{std::string("{}\0x", 4), "zero byte"},
                                           BadText{"\xEF\xBB\xBF{}", "byte-order mark"},
                                           BadText{std::string(33, '[') + std::string(33, ']'), "nested deeper than 32"},
                                           BadText{std::string(200000, '['), "nested deeper than 32"}));

TEST(ParseJson, Limits) {
  EXPECT_THAT(Parse(std::string(32, '[') + std::string(32, ']')), IsOk());
  EXPECT_THAT(ParseJson("[1, 2]", "f", Code::kPlugin, {.bytes = 5}), StatusIs(Code::kPlugin, "6 B and may have 5 B"));
}

TEST(DumpJson, IsTheSameWhateverTheOrderOfInsertion) {
  EXPECT_EQ(DumpJson({{"b", 1}, {"a", {2, "x"}}}), "{\n  \"a\": [\n    2,\n    \"x\"\n  ],\n  \"b\": 1\n}\n");
  EXPECT_EQ(DumpJson(Json("\xFF")), "\"\xEF\xBF\xBD\"\n");
}

class JsonValueTest : public ::testing::Test {
 protected:
  Json json_ = Json::parse(R"({"s": "x", "i": 3, "n": -1, "u": 18446744073709551615, "f": 1.5, "b": true, "l": [1, "2"],
                               "o": {"p": {"q": [0, -5]}}, "m": {"k": "v"}, "e": 1e3})");
  JsonValue root_{json_, "f.json", Code::kPlugin};
};

TEST_F(JsonValueTest, TypedAccess) {
  EXPECT_EQ(*root_.String("s"), "x");
  EXPECT_EQ(*root_.Int("i", 0, 9), 3);
  EXPECT_EQ(*root_.Int("n", -1, 9), -1);
  EXPECT_EQ(*root_.Number("f"), 1.5);
  EXPECT_EQ(*root_.Number("i"), 3);
  EXPECT_TRUE(*root_.Bool("b"));
  EXPECT_EQ(root_.Array("l")->size(), 2u);
  EXPECT_EQ(*root_.At("m")->AsStringMap(), (std::map<std::string, std::string>{{"k", "v"}}));
  EXPECT_EQ(*root_.At("o")->At("p")->At("q")->AsInts(-5, 0), (std::vector<int64_t>{0, -5}));
}

TEST_F(JsonValueTest, SentencesNameThePlace) {
  EXPECT_THAT(root_.String("i"), StatusIs(Code::kPlugin, "f.json: i: expected a string, found 3"));
  EXPECT_THAT(root_.String("t"), StatusIs(Code::kPlugin, "f.json: the key 't' is missing"));
  EXPECT_THAT(root_.Int("s", 0, 9), StatusIs(Code::kPlugin, "f.json: s: expected a whole number, found the string \"x\""));
  EXPECT_THAT(root_.At("o")->At("p")->At("q")->AsInts(0, 9),
              StatusIs(Code::kPlugin, "f.json: o.p.q[1]: expected a whole number, 0 to 9, found -5"));
  EXPECT_THAT(root_.At("l")->AsStrings(), StatusIs(Code::kPlugin, "f.json: l[0]: expected a string, found 1"));
  EXPECT_THAT(root_.Bool("o"), StatusIs(Code::kPlugin, "expected true or false, found an object"));
  EXPECT_THAT(root_.Array("o"), StatusIs(Code::kPlugin, "expected a list, found an object"));
  EXPECT_THAT(root_.At("s")->At("x"), StatusIs(Code::kPlugin, "f.json: s: expected an object"));
}

TEST_F(JsonValueTest, NumbersAreNotBent) {
  EXPECT_THAT(root_.Int("u", 0, INT64_MAX), StatusIs(Code::kPlugin, "found 18446744073709551615"));
  EXPECT_THAT(root_.Int("n", 0, INT64_MAX), StatusIs(Code::kPlugin, "0 or more, found -1"));
  EXPECT_THAT(root_.Int("e", 0, 9999), StatusIs(Code::kPlugin, "expected a whole number"));
  EXPECT_THAT(root_.Int("b", 0, 1), StatusIs(Code::kPlugin, "expected a whole number, found true"));
}

TEST_F(JsonValueTest, CheckKeys) {
  const JsonValue map = *root_.At("m");
  EXPECT_THAT(map.CheckKeys({"k"}), IsOk());
  EXPECT_THAT(map.CheckKeys({"k", "other"}), StatusIs(Code::kPlugin, "f.json: m: the key 'other' is missing"));
  EXPECT_THAT(map.CheckKeys({"kk"}), StatusIs(Code::kPlugin, "unknown key 'k' (did you mean 'kk'?)"));
}

}  // namespace
}  // namespace autoep

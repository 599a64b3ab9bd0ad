// SPDX-License-Identifier: Apache-2.0
#include "presets/strict_yaml.h"

#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

using ::testing::ElementsAre;

Result<YamlValue> Parse(std::string_view text) { return YamlValue::Parse(text, "f.yaml"); }

TEST(YamlValue, TypedAccess) {
  const auto root = Parse("s: word\nq: 'yes'\ni: -12\nd: 0.5\nb: true\nl: [a, b]\nm:\n  k: v\n  j: 0\ntext: |\n  line\n");
  ASSERT_THAT(root, IsOk());
  EXPECT_EQ(*root->String("s"), "word");
  EXPECT_EQ(*root->String("q"), "yes");
  EXPECT_EQ(*root->String("text"), "line\n");
  EXPECT_EQ(*root->Int("i", -100, 100), -12);
  EXPECT_EQ(*root->At("d")->AsNumber(), 0.5);
  EXPECT_TRUE(*root->Bool("b"));
  EXPECT_THAT(*root->StringsOr("l", {}), ElementsAre("a", "b"));
  EXPECT_THAT(*root->StringsOr("none", {"x"}), ElementsAre("x"));
  EXPECT_EQ(*root->StringOr("none", "x"), "x");
  EXPECT_EQ(root->At("m")->AsMap()->at(1).first, "j");
  EXPECT_FALSE(root->Has("k"));
  EXPECT_EQ(*root->At("m")->AsJson(), Json({{"k", "v"}, {"j", 0}}));
}

TEST(YamlValue, AsJsonKeepsTypes) {
  const auto root = Parse("{a: 1, b: 1.5, c: true, d: 'true', e: [x, 2], f: null, g: 1e-05}");
  ASSERT_THAT(root, IsOk());
  EXPECT_EQ(*root->AsJson(), Json::parse(R"({"a":1,"b":1.5,"c":true,"d":"true","e":["x",2],"f":null,"g":1e-05})"));
}

struct BadYaml {
  std::string text;
  std::string sentence;
};

class YamlRefuses : public ::testing::TestWithParam<BadYaml> {};

TEST_P(YamlRefuses, WithPlaceAndSentence) { EXPECT_THAT(Parse(GetParam().text), StatusIs(Code::kUsage, GetParam().sentence)); }

INSTANTIATE_TEST_SUITE_P(
    All, YamlRefuses,
    ::testing::Values(BadYaml{"a: 1\nb: 2\na: 3\n", "f.yaml:3:1: the key 'a' occurs twice (first in line 1)"},
                      BadYaml{"x:\n  - {p: 1, p: 2}\n", "f.yaml:2:12: the key 'p' occurs twice"},
                      BadYaml{"a: &x 1\n", "f.yaml:1:4: anchors are not allowed"},
                      BadYaml{"a: &x 1\nb: *x\n", "anchors are not allowed"},
                      BadYaml{"a: !!int 1\n", "the tag 'tag:yaml.org,2002:int' is not allowed"},
                      BadYaml{"[1]: x\n", "a key must be a plain word"}, BadYaml{"? \n: x\n", "a key must be a plain word"},
                      BadYaml{"a: 1\n---\nb: 2\n", "f.yaml:3:1: a second document"},
                      BadYaml{"a: [1\n", "f.yaml:2:1: not valid YAML"}, BadYaml{"a: 1\n  b: 2\n", "f.yaml:2:4: not valid YAML"},
                      BadYaml{"", "f.yaml:1:1: the file holds no value"}, BadYaml{"a: \xFF\n", "f.yaml:1:1: the file is not UTF-8"},
                      BadYaml{std::string(17, '[') + std::string(17, ']'), "nested deeper than 16"},
                      BadYaml{std::string(100000, '['), "f.yaml:1:1: "},
                      BadYaml{std::string((1 << 20) + 1, '#'), "larger than 1.0 MiB"}));

struct BadValue {
  std::string text;
  std::string kind;
  std::string sentence;
};

class YamlValueRefuses : public ::testing::TestWithParam<BadValue> {};

TEST_P(YamlValueRefuses, WithPlaceAndSentence) {
  const auto root = Parse("key: " + GetParam().text);
  ASSERT_THAT(root, IsOk());
  const std::string& kind = GetParam().kind;
  const Status status = kind == "string"   ? root->String("key").status()
                        : kind == "int"    ? root->Int("key", 0, 100).status()
                        : kind == "bool"   ? root->Bool("key").status()
                        : kind == "number" ? root->At("key")->AsNumber().status()
                        : kind == "json"   ? root->At("key")->AsJson().status()
                                           : root->At("key")->AsList().status();
  EXPECT_THAT(status, StatusIs(Code::kUsage, "f.yaml:1:6: "));
  EXPECT_THAT(status, StatusIs(Code::kUsage, GetParam().sentence));
}

INSTANTIATE_TEST_SUITE_P(
    All, YamlValueRefuses,
    ::testing::Values(BadValue{"012", "int", "expected a whole number without leading zeros, found '012'"},
                      BadValue{"0x10", "int", "expected a whole number, found '0x10'"},
                      BadValue{"1.0", "int", "expected a whole number"}, BadValue{"1_000", "int", "expected a whole number"},
                      BadValue{"+1", "int", "expected a whole number"},
                      BadValue{"'1'", "int", "expected a whole number, found the string '1'"},
                      BadValue{"101", "int", "expected a whole number, 0 to 100, found '101'"},
                      BadValue{"-1", "int", "expected a whole number, 0 to 100"},
                      BadValue{"99999999999999999999", "int", "expected a whole number"},
                      BadValue{"yes", "bool", "expected true or false, found 'yes'"},
                      BadValue{"True", "bool", "expected true or false"}, BadValue{"1", "bool", "expected true or false"},
                      BadValue{"'true'", "bool", "expected true or false, found the string"},
                      BadValue{"yes", "string", "expected a string (put it in quotes), found 'yes'"},
                      BadValue{"Off", "string", "put it in quotes"}, BadValue{"12", "string", "put it in quotes"},
                      BadValue{"012", "string", "put it in quotes"}, BadValue{"1e3", "string", "put it in quotes"},
                      BadValue{"[a]", "string", "expected a string, found a list"},
                      BadValue{"{a: b}", "string", "expected a string, found a map"},
                      BadValue{".inf", "number", "expected a number"}, BadValue{"nan", "number", "expected a number"},
                      BadValue{"1e999", "number", "expected a number"}, BadValue{"word", "list", "expected a list, found 'word'"},
                      BadValue{"no", "json", "expected true, false, a number"}, BadValue{"012", "json", "without leading zeros"}));

TEST(YamlValue, NothingWhereAStringIsExpected) {
  EXPECT_THAT(Parse("key:\nb: 1")->String("key"), StatusIs(Code::kUsage, "expected a string, found nothing"));
}

TEST(YamlValue, CheckKeysNamesTheKeysPlace) {
  const auto root = Parse("block: x\nexpert_stroage: y\n");
  EXPECT_THAT(root->CheckKeys({"block", "expert_storage"}),
              StatusIs(Code::kUsage, "f.yaml:2:1: unknown key 'expert_stroage' (did you mean 'expert_storage'?)"));
  EXPECT_THAT(root->CheckKeys({"block", "expert_stroage"}), IsOk());
  EXPECT_THAT(Parse("word")->CheckKeys({}), StatusIs(Code::kUsage, "f.yaml:1:1: expected a map, found 'word'"));
  EXPECT_THAT(root->At("none"), StatusIs(Code::kUsage, "f.yaml:1:1: the key 'none' is missing"));
}

TEST(YamlValue, AValueOutlivesItsDocument) {
  const YamlValue inner = *Parse("a: {b: kept}")->At("a");
  EXPECT_EQ(*inner.String("b"), "kept");
}

TEST(YamlValue, LoadNamesTheFile) {
  const TempFolder folder;
  WriteBytes(folder / "x.yaml", "a: [");
  EXPECT_THAT(YamlValue::Load(folder / "x.yaml"), StatusIs(Code::kUsage, "x.yaml:1:1: not valid YAML"));
  EXPECT_THAT(YamlValue::Load(folder / "none.yaml"), StatusIs(Code::kUsage, "none.yaml: there is no such file"));
}

}  // namespace
}  // namespace autoep

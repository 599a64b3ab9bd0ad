// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/safetensors.h"

#include <algorithm>
#include <cstdlib>
#include <random>

#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

using ::testing::ElementsAre;

std::string File(const std::string& header, const std::string& data = "") {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  return out + header + data;
}

Result<SafetensorsFile> Parse(const std::string& bytes) { return SafetensorsFile::Parse(bytes, "f"); }

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape, uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" + std::to_string(begin) + "," +
         std::to_string(end) + "]}";
}

TEST(SafetensorsFile, ReadsTensorsAndMetadata) {
  const std::string bytes = File("{\"__metadata__\":{\"k\":\"v\"}," + Tensor("b", "F32", "[2]", 2, 10) + "," +
                                     Tensor("a", "I8", "[1,2]", 0, 2) + "," + Tensor("none", "F64", "[0,3]", 10, 10) + "}  ",
                                 "xy12345678");
  const auto file = Parse(bytes);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(file->metadata().at("k"), "v");
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  const SafetensorsTensor* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, "F32");
  EXPECT_THAT(b->shape, ElementsAre(2));
  EXPECT_EQ(std::string_view(b->data, b->bytes), "12345678");
  EXPECT_EQ(file->Find("none")->bytes, 0u);
  EXPECT_EQ(file->Find("c"), nullptr);
}

TEST(SafetensorsFile, TakesScalarsAndFilesWithoutTensors) {
  EXPECT_THAT(Parse(File("{" + Tensor("s", "U8", "[]", 0, 1) + "}", "x")), IsOk());
  EXPECT_THAT(Parse(File("{}")), IsOk());
  EXPECT_THAT(Parse(File("{" + Tensor("s", "F4", "[2]", 0, 1) + "}", "x")), IsOk());
}

struct BadFile {
  std::string bytes;
  std::string sentence;
};

class SafetensorsRefuses : public ::testing::TestWithParam<BadFile> {};

TEST_P(SafetensorsRefuses, WithItsSentence) { EXPECT_THAT(Parse(GetParam().bytes), StatusIs(Code::kInput, GetParam().sentence)); }

std::string One(const std::string& dtype, const std::string& shape, uint64_t begin, uint64_t end, const std::string& data) {
  return File("{" + Tensor("t", dtype, shape, begin, end) + "}", data);
}

INSTANTIATE_TEST_SUITE_P(
    Header, SafetensorsRefuses,
    ::testing::Values(BadFile{"", "fewer than 8 bytes"}, BadFile{"\x01\0\0\0\0\0", "fewer than 8 bytes"},
                      BadFile{std::string("\x01\xE1\xF5\x05\0\0\0\0", 8) + "{}",
                              "would have 100000001 bytes and may have 100000000"},
                      BadFile{std::string(8, '\xFF'), "would have 18446744073709551615 bytes"},
                      BadFile{std::string("\x03\0\0\0\0\0\0\0{}", 10), "ends inside its header of 3 bytes: it is truncated"},
                      BadFile{File("{\"\xFF\":1}"), "not UTF-8"}, BadFile{File("{"), "not valid JSON"},
                      BadFile{File(""), "not valid JSON"}, BadFile{File("[]"), "expected an object"},
                      BadFile{File("{}\xC2\xA0"), "not valid JSON"}, BadFile{File(std::string("{}\0", 3)), "zero byte"},
                      BadFile{File("{\"a\":{\"b\":{\"c\":{}}}}"), "nested deeper than 3"}));

INSTANTIATE_TEST_SUITE_P(
    Tensors, SafetensorsRefuses,
    ::testing::Values(
        BadFile{File("{\"t\":1}"), "t: expected an object, found 1"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[]}}"), "the key 'data_offsets' is missing"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"more\":1}}"), "unknown key 'more'"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0]}}"), "expected two numbers, found 1"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,0]}}"), "0 or more, found -1"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", "x"), "expected a whole number"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[-1,0]}}"), "0 or more, found -1"},
        BadFile{File("{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[18446744073709551615,0]}}"),
                "found 18446744073709551615"},
        BadFile{One("INT9", "[1]", 0, 1, "x"), "unknown dtype 'INT9'"},
        BadFile{One("U8", "[0]", 1, 0, ""), "ends before it begins"},
        BadFile{File("{\"__metadata__\":{\"k\":1}}"), "expected a string, found 1"},
        BadFile{File("{" + Tensor("t", "U8", "[1]", 0, 1) + "," + Tensor("t", "U8", "[1]", 0, 1) + "}", "x"),
                "the key 't' occurs twice"}));

INSTANTIATE_TEST_SUITE_P(
    Data, SafetensorsRefuses,
    ::testing::Values(BadFile{One("U8", "[1]", 1, 2, "xx"), "leaves a hole before it: it begins at 1, not 0"},
                      BadFile{File("{" + Tensor("a", "U8", "[2]", 0, 2) + "," + Tensor("b", "U8", "[2]", 1, 3) + "}", "xxx"),
                              "'b' overlaps the one before"},
                      BadFile{File("{" + Tensor("a", "U8", "[2]", 0, 2) + "," + Tensor("b", "U8", "[2]", 0, 2) + "}", "xx"),
                              "'b' overlaps the one before"},
                      BadFile{File("{" + Tensor("a", "U8", "[1]", 0, 1) + "," + Tensor("b", "U8", "[1]", 2, 3) + "}", "xxx"),
                              "'b' leaves a hole"},
                      BadFile{One("F32", "[1]", 0, 3, "xxx"), "has 3 bytes, and its dtype and shape need 4"},
                      BadFile{One("U8", "[4294967296,4294967296]", 0, 0, ""), "shape whose size overflows"},
                      BadFile{One("F64", "[1152921504606846976]", 0, 0, ""), "shape whose size overflows"},
                      BadFile{One("U8", "[9223372036854775807,9223372036854775807]", 0, 0, ""), "shape whose size overflows"},
                      BadFile{One("F4", "[1]", 0, 1, "x"), "does not end on a whole byte"},
                      BadFile{One("U8", "[2]", 0, 2, "x"), "reaches beyond the end of the file"},
                      BadFile{One("U8", "[1]", 0, 1, "xy"), "1 bytes follow the last tensor"},
                      BadFile{File("{}", "x"), "1 bytes follow the last tensor"}));

TEST(SafetensorsFile, EveryTruncationIsRefused) {
  const std::string bytes = File("{" + Tensor("a", "F32", "[3]", 0, 12) + "}", "0123456789ab");
  ASSERT_THAT(Parse(bytes), IsOk());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::string cut = bytes.substr(0, size);
    EXPECT_EQ(Parse(cut).status().code(), Code::kInput) << size;
  }
}

std::string Write(std::vector<SafetensorsSpec> specs, const std::map<std::string, std::string>& metadata) {
  std::string out;
  auto writer = SafetensorsWriter::Create(std::move(specs), metadata, [&](const void* data, size_t size) {
    out.append(static_cast<const char*>(data), size);
    return Status();
  });
  EXPECT_THAT(writer, IsOk());
  for (const SafetensorsSpec& tensor : writer->tensors()) {
    uint64_t bytes = *SafetensorsDtypeBits(tensor.dtype) / 8;
    for (const int64_t size : tensor.shape) bytes *= size;
    const std::string data(bytes, tensor.name[0]);
    EXPECT_THAT(writer->Append(data.data(), bytes / 2), IsOk());
    EXPECT_THAT(writer->Append(data.data() + bytes / 2, bytes - bytes / 2), IsOk());
  }
  EXPECT_THAT(writer->Finish(), IsOk());
  return out;
}

TEST(SafetensorsWriter, BytesAreThoseOfTheFormat) {
  EXPECT_EQ(Write({{"a", "I8", {2}}}, {{"k", "v"}}),
            File("{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}  ", "aa"));
  EXPECT_EQ(Write({}, {}), File("{}      "));
}

TEST(SafetensorsWriter, BytesDoNotDependOnTheOrderGiven) {
  std::vector<SafetensorsSpec> specs = {
      {"b", "F32", {3}}, {"a", "F32", {2, 2}}, {"w", "I64", {1}}, {"c", "BF16", {5}}, {"z", "BOOL", {0}}};
  const std::string first = Write(specs, {{"y", "1"}, {"x", "2"}});
  std::mt19937 random(7);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(specs.begin(), specs.end(), random);
    EXPECT_EQ(Write(specs, {{"x", "2"}, {"y", "1"}}), first);
  }
  const auto file = Parse(first);
  ASSERT_THAT(file, IsOk());
  std::vector<std::string> order;
  for (const SafetensorsTensor& tensor : file->tensors()) order.push_back(tensor.name);
  EXPECT_THAT(order, ElementsAre("w", "a", "b", "c", "z"));
}

TEST(SafetensorsWriter, AnyTensorsComeBack) {
  static const std::string kDtypes[] = {"BOOL", "U8", "I8", "F16", "BF16", "I32", "F32", "F64", "I64"};
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<SafetensorsSpec> specs(random() % 6);
    for (size_t i = 0; i < specs.size(); ++i) {
      specs[i] = {std::string(1, static_cast<char>('a' + i)) + "\"\\\n\xC3\xA9", kDtypes[random() % 9], {}};
      for (size_t dims = random() % 4; dims > 0; --dims) specs[i].shape.push_back(random() % 4);
    }
    const std::string bytes = Write(specs, {{"note", "round"}});
    const auto file = Parse(bytes);
    ASSERT_THAT(file, IsOk());
    ASSERT_EQ(file->tensors().size(), specs.size());
    for (const SafetensorsSpec& spec : specs) {
      const SafetensorsTensor* tensor = file->Find(spec.name);
      ASSERT_NE(tensor, nullptr);
      EXPECT_EQ(static_cast<const SafetensorsSpec&>(*tensor), spec);
      EXPECT_EQ(std::string_view(tensor->data, tensor->bytes), std::string(tensor->bytes, spec.name[0]));
    }
  }
}

TEST(SafetensorsWriter, RefusesMistakesOfItsCaller) {
  const ByteSink sink = [](const void*, size_t) { return Status(); };
  const auto create = [&](std::vector<SafetensorsSpec> specs) { return SafetensorsWriter::Create(std::move(specs), {}, sink); };
  EXPECT_THAT(create({{"a", "I8", {1}}, {"a", "F32", {1}}}), StatusIs(Code::kBug, "'a' occurs twice"));
  EXPECT_THAT(create({{"a", "X", {1}}}), StatusIs(Code::kBug, "unknown dtype"));
  EXPECT_THAT(create({{"a", "I8", {-1}}}), StatusIs(Code::kBug, "overflows"));
  EXPECT_THAT(create({{"a", "F4", {1}}}), StatusIs(Code::kBug, "no whole number of bytes"));
  EXPECT_THAT(create({{"__metadata__", "I8", {1}}}), StatusIs(Code::kBug, "reserved"));
  EXPECT_THAT(create({{"\xFF", "I8", {1}}}), StatusIs(Code::kBug, "not UTF-8"));
  auto writer = create({{"a", "I8", {2}}});
  ASSERT_THAT(writer, IsOk());
  EXPECT_THAT(writer->Append("xyz", 3), StatusIs(Code::kBug, "more than the 2 bytes"));
  EXPECT_THAT(writer->Append("x", 1), IsOk());
  EXPECT_THAT(writer->Finish(), StatusIs(Code::kBug, "1 of 2 bytes"));
}

TEST(SafetensorsWriter, HandsOnTheFailureOfItsSink) {
  const ByteSink full = [](const void*, size_t) { return Status(Code::kOutput, "full"); };
  EXPECT_THAT(SafetensorsWriter::Create({}, {}, full), StatusIs(Code::kOutput, "full"));
}

// The tool that test_safetensors_reference.py drives.
TEST(SafetensorsTool, ChecksAndCopies) {
  const TempFolder folder;
  const std::string good = Write({{"a", "F32", {3}}, {"b", "I64", {2}}}, {});
  WriteBytes(folder / "good", good);
  WriteBytes(folder / "bad", good + "x");
  const auto run = [](const std::string& words) {
    return std::system(("tests/plugin/io/safetensors_tool " + words + " 2>/dev/null").c_str());
  };
  EXPECT_EQ(run("copy " + (folder / "good") + " " + (folder / "copy")), 0);
  EXPECT_EQ(ReadBytes(folder / "copy"), good);
  EXPECT_NE(run("check " + (folder / "bad")), 0);
}

}  // namespace
}  // namespace autoep

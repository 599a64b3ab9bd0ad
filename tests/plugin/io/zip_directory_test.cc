// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/zip_directory.h"

#include <algorithm>

#include "plugin/io/sha256.h"
#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"
#include "tests/plugin/io/zip_builder.h"

namespace autoep {
namespace {

constexpr char kScripted[] = "tests/plugin/io/testdata/scripted.pt";

std::vector<std::string> Names(const ZipDirectory& directory) {
  std::vector<std::string> names;
  for (const ZipRecord& record : directory.records()) names.push_back(record.name);
  return names;
}

// A TorchScript archive after `change`, which may alter its parts and its shape.
template <typename Change>
std::string Altered(Change change) {
  std::vector<ZipPart> parts = TorchScriptParts();
  ZipShape shape;
  change(parts, shape);
  return BuildZip(parts, shape);
}

Status Parse(const std::string& bytes) { return ZipDirectory::Parse(bytes, "m.pt").status(); }

TEST(ZipDirectory, ReadsARealArchive) {
  const auto directory = ZipDirectory::Open(kScripted);
  ASSERT_THAT(directory, IsOk());
  EXPECT_EQ(directory->root(), "scripted");
  EXPECT_EQ(directory->path(), kScripted);
  EXPECT_THAT(Names(*directory), ::testing::ElementsAre("extra/note.txt", "data/0", "data/1", "data/2", "data.pkl",
                                                        "code/__torch__.py", "code/__torch__.py.debug_pkl", "constants.pkl",
                                                        "version", "byteorder", ".data/serialization_id"));
  const ZipRecord* weight = directory->Find("data/0");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->size, 6u * 4 * sizeof(float));
  EXPECT_EQ(weight->offset % 64, 0u);
  EXPECT_FALSE(weight->deflated);
  EXPECT_EQ(*directory->Read(*directory->Find("extra/note.txt")), "kept");
  const ZipRecord* code = directory->Find("code/__torch__.py");
  EXPECT_TRUE(code->deflated);
  EXPECT_THAT(*directory->Read(*code), ::testing::HasSubstr("class Model(Module):"));
  for (const ZipRecord& record : directory->records()) EXPECT_THAT(directory->CheckCrc(record), IsOk()) << record.name;
  EXPECT_EQ(directory->Find("data/9"), nullptr);
}

TEST(ZipDirectory, DigestIsThatOfTheCentralDirectory) {
  const std::string bytes = ReadBytes(kScripted);
  const size_t begin = bytes.find("PK\x01\x02");
  const size_t end = bytes.find("PK\x06\x06");
  EXPECT_EQ(ZipDirectory::Open(kScripted)->digest(), Sha256Hex(bytes.substr(begin, end - begin)));
}

TEST(ZipDirectory, TakesArchivesBuiltByHand) {
  EXPECT_THAT(Parse(BuildZip(TorchScriptParts())), IsOk());
  EXPECT_THAT(Parse(Altered([](auto&, ZipShape& shape) { shape.zip64 = false; })), IsOk());
  EXPECT_THAT(Parse(Altered([](auto& parts, ZipShape&) {
                for (ZipPart& part : parts) part.described = false;
              })),
              IsOk());
  EXPECT_THAT(Parse(Altered([](auto& parts, ZipShape& shape) {
                parts[0].wide_descriptor = true;
                parts[0].size = parts[0].packed = 0xFFFFFFFF;
                parts[0].directory_extra = Zip64Extra({100, 100});
                shape.small_entries = 0xFFFF;
              })),
              // The builder's descriptor repeats the sentinel, so only the descriptor may be wrong here.
              StatusIs(Code::kInput, "data descriptor"));
}

TEST(ZipDirectory, SizesOfFourGigabytesComeFromTheZip64Field) {
  std::vector<ZipPart> parts = TorchScriptParts();
  parts[0].described = false;
  parts[0].size = parts[0].packed = 0xFFFFFFFF;
  parts[0].directory_extra = Zip64Extra({100, 100});
  parts[0].local_extra = Zip64Extra({100, 100});
  EXPECT_THAT(Parse(BuildZip(parts)), IsOk());
  parts[0].directory_extra = Zip64Extra({uint64_t{1} << 40, uint64_t{1} << 40});
  EXPECT_THAT(Parse(BuildZip(parts)), StatusIs(Code::kInput, "the record 'm/data/0' overlaps the one behind it"));
  parts[0].directory_extra = Zip64Extra({100});
  EXPECT_THAT(Parse(BuildZip(parts)), StatusIs(Code::kInput, "malformed extra fields"));
  parts[0].directory_extra = Zip64Extra({100, 100}) + Zip64Extra({1, 1});
  EXPECT_THAT(Parse(BuildZip(parts)), StatusIs(Code::kInput, "malformed extra fields"));
}

TEST(ZipDirectory, SaysWhatTheFileIsInstead) {
  const TempFolder folder;
  WriteBytes(folder / "empty.pt", "");
  WriteBytes(folder / "text.pt", "hello");
  WriteBytes(folder / "tensors.safetensors", std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  EXPECT_THAT(ZipDirectory::Open(folder / "none.pt"), StatusIs(Code::kInput, "none.pt: there is no such file"));
  EXPECT_THAT(ZipDirectory::Open(folder / "empty.pt"), StatusIs(Code::kInput, "empty.pt: the file is empty"));
  EXPECT_THAT(ZipDirectory::Open(folder.path()), StatusIs(Code::kInput, "this is a directory"));
  EXPECT_THAT(ZipDirectory::Open(folder / "text.pt"),
              StatusIs(Code::kInput, "not a TorchScript archive: it does not begin as a zip"));
  EXPECT_THAT(ZipDirectory::Open(folder / "tensors.safetensors"), StatusIs(Code::kInput, "this is a safetensors file"));
  EXPECT_THAT(ZipDirectory::Open("tests/plugin/io/testdata/state_dict.pt"),
              StatusIs(Code::kInput, "this is a plain torch.save file"));
  EXPECT_THAT(ZipDirectory::Open("tests/plugin/io/testdata/state_dict.pt"), StatusIs(Code::kInput, "torch.jit.save("));
  EXPECT_THAT(ZipDirectory::Open("tests/plugin/io/testdata/legacy_pickle.pt"), StatusIs(Code::kInput, "this is a pickle"));
  EXPECT_THAT(Parse(BuildZip({{.name = "m/archive_format", .data = "pt2"}})), StatusIs(Code::kInput, "torch.export archive"));
  EXPECT_THAT(Parse(BuildZip({{.name = "m/.data/extern_modules", .data = ""}})), StatusIs(Code::kInput, "torch.package archive"));
  EXPECT_THAT(Parse(BuildZip({{.name = "m/readme.txt", .data = "x"}})),
              StatusIs(Code::kInput, "a zip file, but not a TorchScript archive"));
  EXPECT_THAT(Parse(BuildZip({})), StatusIs(Code::kInput, "has no records"));
}

TEST(ZipDirectory, WantsTheRecordsOfTorchScript) {
  for (const std::string missing : {"m/data.pkl", "m/constants.pkl", "m/version", "m/code/__torch__.py"}) {
    const std::string bytes =
        Altered([&](auto& parts, ZipShape&) { std::erase_if(parts, [&](const ZipPart& part) { return part.name == missing; }); });
    EXPECT_THAT(Parse(bytes), StatusIs(Code::kInput, "m.pt: ")) << missing;
  }
}

struct Mutant {
  std::string sentence;
  void (*change)(std::vector<ZipPart>& parts, ZipShape& shape);
};

void PrintTo(const Mutant& mutant, std::ostream* out) { *out << mutant.sentence; }

class ZipDirectoryRefuses : public ::testing::TestWithParam<Mutant> {};

TEST_P(ZipDirectoryRefuses, WithItsSentence) {
  EXPECT_THAT(Parse(Altered(GetParam().change)), StatusIs(Code::kInput, GetParam().sentence));
}

#define MUTANT(sentence, change)                                 \
  Mutant {                                                       \
    sentence, [](std::vector<ZipPart>& parts, ZipShape& shape) { \
      (void)parts, (void)shape;                                  \
      change;                                                    \
    }                                                            \
  }

INSTANTIATE_TEST_SUITE_P(
    End, ZipDirectoryRefuses,
    ::testing::Values(MUTANT("3 bytes follow the end of the archive", shape.suffix = "abc"),
                      MUTANT("3 bytes follow the end of the archive", shape.comment_size = 3; shape.suffix = "abc"),
                      MUTANT("has a comment", shape.comment_size = 3),
                      MUTANT("does not begin as a zip file does", shape.prefix = "#!/bin/sh\n"),
                      MUTANT("10 bytes precede the archive", shape.prefix = "PK\x03\x04"
                                                                            "abcdef"),
                      MUTANT("one part of several", shape.disk = 1), MUTANT("one part of several", shape.parts = 2),
                      MUTANT("one part of several", shape.zip64 = false; shape.disk = 1),
                      MUTANT("zip64 end record is misplaced", shape.locator_offset = 0),
                      MUTANT("disagree about the number of records: 5 and 7", shape.small_entries = 5),
                      MUTANT("bytes were added, lost or damaged", shape.after_directory = "x"),
                      MUTANT("bytes were added, lost or damaged", shape.directory_offset = 3),
                      MUTANT("bytes were added, lost or damaged", shape.directory_offset = UINT64_MAX),
                      MUTANT("bytes were added, lost or damaged", shape.directory_size = UINT64_MAX),
                      MUTANT("too small for its 4294967296 records", shape.entries = uint64_t{1} << 32;
                             shape.small_entries = 0xFFFF),
                      MUTANT("too small for its 65535 records", shape.entries = 65535; shape.zip64 = false),
                      MUTANT("the directory's record 7 is cut off", shape.entries = 8),
                      MUTANT("bytes follow the directory's last record", shape.entries = 6)));

INSTANTIATE_TEST_SUITE_P(Names, ZipDirectoryRefuses,
                         ::testing::Values(MUTANT("absolute", parts[1].name = "/etc/passwd"),
                                           MUTANT("'..'", parts[1].name = "m/../x"), MUTANT("'..'", parts[1].name = ".."),
                                           MUTANT("'.'", parts[1].name = "m/./x"), MUTANT("empty", parts[1].name = "m//x"),
                                           MUTANT("ends in '/'", parts[1].name = "m/data/"), MUTANT("empty", parts[1].name = ""),
                                           MUTANT("backslash", parts[1].name = "m\\..\\x"),
                                           MUTANT("control characters", parts[1].name = "m/a\nb"),
                                           MUTANT("'m/a\\x00b' has control characters", parts[1].name = std::string("m/a\0b", 5)),
                                           MUTANT("not UTF-8", parts[1].name = "m/\xFF"),
                                           MUTANT("outside the archive's root folder 'm'", parts[1].name = "n/data/1"),
                                           MUTANT("outside the archive's root folder", parts[1].name = "data"),
                                           MUTANT("the record 'data/0' occurs twice", parts[1].name = "m/data/0"),
                                           MUTANT("differ only in case", parts[1].name = "m/DATA.pkl")));

INSTANTIATE_TEST_SUITE_P(
    Records, ZipDirectoryRefuses,
    ::testing::Values(MUTANT("flags 0x809 (encrypted or unusual)", parts[0].flags = 0x809),
                      MUTANT("packed by method 14", parts[0].method = 14),
                      MUTANT("is compressed, and torch compresses code only", parts[0].deflate = true),
                      MUTANT("is stored, and yet its sizes differ", parts[0].size = 101),
                      MUTANT("has a comment", parts[0].comment = "x"), MUTANT("another part of the archive", parts[0].disk = 1),
                      MUTANT("malformed extra fields", parts[0].directory_extra = "abc"),
                      MUTANT("malformed extra fields", parts[0].local_extra = std::string("FB\xFF\xFF", 4)),
                      MUTANT("has a header that is not the directory's", parts[0].local_name = "m/data/7"),
                      MUTANT("has a header that is not the directory's", parts[0].local_flags = 0x800),
                      MUTANT("in its header that is not the directory's", parts[0].local_crc = 7),
                      MUTANT("in its header that is not the directory's", parts[0].local_size = 7),
                      MUTANT("in its data descriptor that are not the directory's", parts[0].descriptor_crc = 7),
                      MUTANT("followed by 17 bytes that belong to nothing", parts[0].gap = "x"),
                      MUTANT("followed by 1 bytes that belong to nothing", parts[0].described = false; parts[0].gap = "x"),
                      MUTANT("followed by 8000 bytes that belong to nothing", shape.before_directory = std::string(8000 - 16, 'x')),
                      MUTANT("overlaps the one behind it", parts[1].header_offset = 0),
                      MUTANT("overlaps", parts[1].header_offset = 40), MUTANT("overlaps", parts[6].header_offset = 0xFFFFFFF0),
                      MUTANT("claims to unpack from", parts[3].size = 1 << 30),
                      MUTANT("above 1.0 GiB", parts[3].packed_bytes = std::string(2 << 20, 'x'); parts[3].size = 3u << 29)));

TEST(ZipDirectory, AHeaderMustBeWhereTheDirectorySays) {
  std::string bytes = BuildZip(TorchScriptParts());
  bytes[bytes.find("PK\x03\x04", 1) + 3] = 5;
  EXPECT_THAT(Parse(bytes), StatusIs(Code::kInput, "the record 'm/data/1' has no header where the directory says"));
}

TEST(ZipDirectory, CodeMayCompressWell) {
  const std::string bytes = Altered([](auto& parts, ZipShape&) { parts[3].data = std::string(100000, 'x'); });
  EXPECT_THAT(Parse(bytes), IsOk());
}

TEST(ZipDirectory, EveryTruncationOfARealArchiveIsRefused) {
  const std::string whole = ReadBytes(kScripted);
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    EXPECT_EQ(Parse(cut).code(), Code::kInput) << size;
  }
  EXPECT_THAT(Parse(whole.substr(0, whole.size() / 2)), StatusIs(Code::kInput, "the file is truncated; copy or save it again"));
}

// Every bit of a record's bytes is under its CRC; every bit of the structure that changes what is read is refused or seen.
TEST(ZipDirectory, OneFlippedBitInARecordIsFoundByItsCrc) {
  const std::string whole = ReadBytes(kScripted);
  const auto intact = ZipDirectory::Parse(whole, "m.pt");
  ASSERT_THAT(intact, IsOk());
  for (const ZipRecord& record : intact->records()) {
    for (const uint64_t at : {record.offset, record.offset + record.packed / 2, record.offset + record.packed - 1}) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string flipped = whole;
        flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
        const auto directory = ZipDirectory::Parse(flipped, "m.pt");
        ASSERT_THAT(directory, IsOk()) << record.name;
        const ZipRecord* damaged = directory->Find(record.name);
        EXPECT_THAT(directory->CheckCrc(*damaged), StatusIs(Code::kInput, "m.pt: the record '" + record.name + "' is damaged"));
        EXPECT_THAT(directory->Read(*damaged), StatusIs(Code::kInput, "is damaged"));
      }
    }
  }
}

// A flipped bit in the structure is refused, or changes nothing that anybody reads: dates, versions, attributes, padding.
TEST(ZipDirectory, OneFlippedBitInTheStructureChangesNothingUnseen) {
  const std::string whole = ReadBytes(kScripted);
  const auto intact = ZipDirectory::Parse(whole, "m.pt");
  ASSERT_THAT(intact, IsOk());
  const auto is_data = [&](size_t at) {
    return std::any_of(intact->records().begin(), intact->records().end(),
                       [&](const ZipRecord& record) { return at >= record.offset && at < record.offset + record.packed; });
  };
  int refused = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    if (is_data(at)) continue;
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const auto directory = ZipDirectory::Parse(flipped, "m.pt");
      if (!directory.ok()) {
        EXPECT_EQ(directory.status().code(), Code::kInput);
        ++refused;
        continue;
      }
      ASSERT_EQ(Names(*directory), Names(*intact)) << at;
      for (size_t i = 0; i < intact->records().size(); ++i) {
        EXPECT_EQ(directory->records()[i].offset, intact->records()[i].offset) << at;
        EXPECT_EQ(directory->records()[i].size, intact->records()[i].size) << at;
        EXPECT_THAT(directory->CheckCrc(directory->records()[i]), IsOk()) << at;
      }
    }
  }
  EXPECT_GT(refused, 5000);
}

TEST(ZipDirectory, InflationGivesExactlyWhatTheDirectorySays) {
  const std::string text(3000, 'x');
  const auto deflated_as = [&](uint64_t size) {
    return Altered([&](auto& parts, ZipShape&) {
      parts[3].data = text;
      parts[3].size = size;
    });
  };
  for (const uint64_t size : {uint64_t{2999}, uint64_t{3001}, uint64_t{0}}) {
    const std::string bytes = deflated_as(size);
    const auto directory = ZipDirectory::Parse(bytes, "m.pt");
    ASSERT_THAT(directory, IsOk());
    EXPECT_THAT(directory->Read(*directory->Find("code/__torch__.py")), StatusIs(Code::kInput, "is damaged")) << size;
    EXPECT_THAT(directory->CheckCrc(*directory->Find("code/__torch__.py")), StatusIs(Code::kInput, "is damaged")) << size;
  }
  // Bytes behind the end of the deflate stream belong to nothing.
  const auto trailing = Altered([&](auto& parts, ZipShape&) {
    parts[3].data = "";
    parts[3].packed_bytes = std::string("\x03\0more", 6);
  });
  const auto directory = ZipDirectory::Parse(trailing, "m.pt");
  ASSERT_THAT(directory, IsOk());
  EXPECT_THAT(directory->Read(*directory->Find("code/__torch__.py")), StatusIs(Code::kInput, "is damaged"));
}

}  // namespace
}  // namespace autoep

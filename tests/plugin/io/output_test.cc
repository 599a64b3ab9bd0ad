// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/output.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "tests/plugin/io/faulty_files.h"
#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Writes a directory of two files; the first failure ends it.
Status WriteTwoFiles(const std::string& target, const OutputOptions& options, const std::string& content = "new") {
  AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedDirectory::Create(target, options));
  AUTOEP_RETURN_IF_ERROR(staged->WriteFile("autoep.json", content));
  AUTOEP_ASSIGN_OR_RETURN(const auto file, staged->CreateFile("model.pt"));
  AUTOEP_RETURN_IF_ERROR(file->Append("part one, "));
  AUTOEP_RETURN_IF_ERROR(file->Append("part two"));
  AUTOEP_RETURN_IF_ERROR(file->Finish());
  return staged->Publish();
}

void ExpectWhole(const std::string& target, const std::string& content = "new") {
  EXPECT_EQ(ReadBytes(target + "/autoep.json"), content);
  EXPECT_EQ(ReadBytes(target + "/model.pt"), "part one, part two");
}

void MakeOld(const TempFolder& folder) {
  fs::create_directory(folder / "out");
  WriteBytes(folder / "out/autoep.json", "old");
}

TEST(StagedDirectory, AppearsWholeWhenPublished) {
  const TempFolder folder;
  const auto staged = StagedDirectory::Create(folder / "out");
  ASSERT_THAT(staged, IsOk());
  EXPECT_TRUE((*staged)->path().starts_with(folder / ".out.autoep-"));
  ASSERT_THAT((*staged)->WriteFile("a", "A"), IsOk());
  EXPECT_FALSE(fs::exists(folder / "out"));
  ASSERT_THAT((*staged)->Publish(), IsOk());
  EXPECT_EQ(ReadBytes(folder / "out/a"), "A");
  EXPECT_THAT(folder.Names(), ElementsAre("out"));
  EXPECT_THAT((*staged)->Publish(), StatusIs(Code::kBug, "published twice"));
}

TEST(StagedDirectory, IsRemovedWhenNotPublished) {
  const TempFolder folder;
  {
    const auto staged = StagedDirectory::Create(folder / "out/");
    ASSERT_THAT(staged, IsOk());
    ASSERT_THAT((*staged)->WriteFile("a", "A"), IsOk());
  }
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(StagedDirectory, TakesPlainNamesOnly) {
  const TempFolder folder;
  const auto staged = StagedDirectory::Create(folder / "out");
  ASSERT_THAT(staged, IsOk());
  for (const char* name : {"", ".", "..", "a/b", "/etc/x"})
    EXPECT_THAT((*staged)->CreateFile(name), StatusIs(Code::kBug, "plain file name"));
  ASSERT_THAT((*staged)->WriteFile("a", "A"), IsOk());
  EXPECT_THAT((*staged)->WriteFile("a", "B"), StatusIs(Code::kOutput, "File exists"));
}

TEST(StagedDirectory, RespectsTheUmask) {
  const TempFolder folder;
  const mode_t old = ::umask(022);
  ASSERT_THAT(WriteTwoFiles(folder / "out", {}), IsOk());
  ::umask(old);
  EXPECT_EQ(fs::status(folder / "out").permissions(), fs::perms(0755));
  EXPECT_EQ(fs::status(folder / "out/model.pt").permissions(), fs::perms(0644));
}

TEST(StagedDirectory, RefusesWhatIsThere) {
  const TempFolder folder;
  MakeOld(folder);
  WriteBytes(folder / "file", "x");
  fs::create_symlink("nowhere", folder / "dangling");
  for (const char* name : {"out", "out/", "file", "dangling", "./out", "out/../out"}) {
    EXPECT_THAT(StagedDirectory::Create(folder / name), StatusIs(Code::kOutput, "the output exists already")) << name;
  }
  EXPECT_THAT(StagedDirectory::Create(folder / "none/out"), StatusIs(Code::kOutput, "there is no folder"));
  EXPECT_THAT(StagedDirectory::Create(folder / "file/out"), StatusIs(Code::kOutput, "there is no folder"));
  for (const char* name : {"", "/", ".", "..", "./"})
    EXPECT_THAT(StagedDirectory::Create(name), StatusIs(Code::kOutput, "")) << name;
  EXPECT_THAT(folder.Names(), ElementsAre("dangling", "file", "out"));
}

TEST(StagedDirectory, OverwritesItsOwnOnly) {
  const TempFolder folder;
  MakeOld(folder);
  fs::create_directory(folder / "photos");
  WriteBytes(folder / "photos/cat.jpg", "x");
  fs::create_directory(folder / "empty");
  fs::create_directory_symlink("out", folder / "link");
  WriteBytes(folder / "file", "x");
  const OutputOptions options{.overwrite = true};
  ASSERT_THAT(WriteTwoFiles(folder / "out", options), IsOk());
  ExpectWhole(folder / "out");
  EXPECT_THAT(WriteTwoFiles(folder / "empty", options), IsOk());
  EXPECT_THAT(WriteTwoFiles(folder / "photos", options), StatusIs(Code::kOutput, "has no autoep.json"));
  EXPECT_THAT(WriteTwoFiles(folder / "file", options), StatusIs(Code::kOutput, "is not a directory"));
  EXPECT_THAT(WriteTwoFiles(folder / "link", options), StatusIs(Code::kOutput, "is not a directory"));
  EXPECT_THAT(folder.Names(), ElementsAre("empty", "file", "link", "out", "photos"));
  EXPECT_EQ(ReadBytes(folder / "photos/cat.jpg"), "x");
}

TEST(StagedDirectory, RefusesAnOutputThatIsOrContainsTheInput) {
  const TempFolder folder;
  fs::create_directories(folder / "home/models");
  WriteBytes(folder / "home/models/m.pt", "x");
  WriteBytes(folder / "home/autoep.json", "x");
  fs::create_directory_symlink("home/models", folder / "alias");
  fs::create_symlink("home", folder / "house");
  const auto check = [&](std::string_view target, std::string_view input, OutputKind kind = OutputKind::kDirectory) {
    return CheckOutput(folder / target, kind, {.overwrite = true, .inputs = {folder / input}});
  };
  EXPECT_THAT(check("home", "home/models/m.pt"), StatusIs(Code::kOutput, "contains the input"));
  EXPECT_THAT(check("home", "alias/m.pt"), StatusIs(Code::kOutput, "contains the input"));
  EXPECT_THAT(check("house", "home/models/m.pt"), StatusIs(Code::kOutput, "contains the input"));
  EXPECT_THAT(check("home/models/..", "home/models/m.pt"), StatusIs(Code::kOutput, "contains the input"));
  EXPECT_THAT(check("alias", "home/models/m.pt"), StatusIs(Code::kOutput, "contains the input"));
  EXPECT_THAT(check("home/models/m.pt", "alias/m.pt", OutputKind::kFile), StatusIs(Code::kOutput, "is the input"));
  EXPECT_THAT(check("alias/m.pt", "home/models/../models/m.pt", OutputKind::kFile), StatusIs(Code::kOutput, "is the input"));
  EXPECT_THAT(check("home", "home"), StatusIs(Code::kOutput, "is the input"));
  EXPECT_THAT(check("home/models/new", "home/models/m.pt"), IsOk());
  EXPECT_THAT(check("other", "home/models/m.pt"), IsOk());
  fs::create_hard_link(folder / "home/models/m.pt", folder / "hard.pt");
  EXPECT_THAT(check("hard.pt", "home/models/m.pt", OutputKind::kFile), StatusIs(Code::kOutput, "is the input"));
}

TEST(StagedDirectory, RefusesADiskWithoutRoom) {
  const TempFolder folder;
  FaultyFiles files;
  files.set_free_bytes(1000);
  EXPECT_THAT(StagedDirectory::Create(folder / "out", {.expected_bytes = 1001, .files = &files}),
              StatusIs(Code::kOutput, "needs 1001 B and the disk has 1000 B free"));
  EXPECT_THAT(StagedDirectory::Create(folder / "out", {.expected_bytes = 1000, .files = &files}), IsOk());
}

TEST(StagedDirectory, OneRunATarget) {
  const TempFolder folder;
  const auto first = StagedDirectory::Create(folder / "out");
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(StagedDirectory::Create(folder / "out"), StatusIs(Code::kOutput, "another autoep run is writing this output"));
  EXPECT_THAT(StagedDirectory::Create(folder / "other"), IsOk());
  ASSERT_THAT((*first)->Publish(), IsOk());
  EXPECT_THAT(folder.Names(), ElementsAre("out"));
}

TEST(StagedDirectory, RemovesWhatAKilledRunLeft) {
  const TempFolder folder;
  fs::create_directory(folder / ".out.autoep-abc123");
  WriteBytes(folder / ".out.autoep-abc123/model.pt", "half");
  WriteBytes(folder / ".out.autoep-notes", "kept: a file");
  fs::create_directory(folder / ".out.autoep-abc1234");
  ASSERT_THAT(WriteTwoFiles(folder / "out", {}), IsOk());
  EXPECT_THAT(folder.Names(), ElementsAre(".out.autoep-abc1234", ".out.autoep-notes", "out"));
}

TEST(StagedDirectory, WhatAppearsMeanwhileIsNotReplaced) {
  const TempFolder folder;
  const auto staged = StagedDirectory::Create(folder / "out");
  ASSERT_THAT(staged, IsOk());
  fs::create_directory(folder / "out");
  EXPECT_THAT((*staged)->Publish(), StatusIs(Code::kOutput, "something was put there while autoep was working"));
}

TEST(StagedDirectory, SyncsEveryFileThenTheFolderThenRenamesThenTheParent) {
  const TempFolder folder;
  FaultyFiles files;
  ASSERT_THAT(WriteTwoFiles(folder / "out", {.files = &files}), IsOk());
  EXPECT_THAT(files.log(), ElementsAre("mkdir", "list", "create", "write", "sync", "close", "create", "write", "write", "sync",
                                       "close", "sync directory", "rename to new", "sync directory"));
}

// Every call fails once, for every reason: a clean failure with the target as it was, and nothing left behind.
TEST(StagedDirectory, SurvivesAFailureOfEveryCall) {
  for (const bool overwrite : {false, true}) {
    FaultyFiles counter;
    {
      const TempFolder folder;
      if (overwrite) MakeOld(folder);
      ASSERT_THAT(WriteTwoFiles(folder / "out", {.overwrite = overwrite, .files = &counter}), IsOk());
    }
    for (int call = 0; call < counter.calls(); ++call) {
      for (const int error : {ENOSPC, EIO, EROFS, EDQUOT, EACCES}) {
        SCOPED_TRACE(counter.log()[call] + ", call " + std::to_string(call) + ", " + ErrorText(error));
        const TempFolder folder;
        if (overwrite) MakeOld(folder);
        FaultyFiles files(call, error);
        const Status status = WriteTwoFiles(folder / "out", {.overwrite = overwrite, .files = &files});
        if (status.ok()) {
          // Only looking for what others left may fail without harm.
          EXPECT_EQ(counter.log()[call], "list");
          ExpectWhole(folder / "out");
          continue;
        }
        EXPECT_THAT(status, StatusIs(Code::kOutput, ErrorText(error)));
        if (status.message().find("the new output is in place") != std::string::npos) {
          ExpectWhole(folder / "out");
          continue;
        }
        if (overwrite) {
          EXPECT_THAT(folder.Names(), ElementsAre("out"));
          EXPECT_EQ(ReadBytes(folder / "out/autoep.json"), "old");
        } else {
          EXPECT_THAT(folder.Names(), IsEmpty());
        }
      }
    }
  }
}

// The process dies before each call: the target is absent, the old one, or whole.
TEST(StagedDirectory, DeathAtEveryCallLeavesNoHalfOutput) {
  for (const bool overwrite : {false, true}) {
    for (int call = 0;; ++call) {
      SCOPED_TRACE(call);
      const TempFolder folder;
      if (overwrite) MakeOld(folder);
      FaultyFiles files(call, EIO, FaultyFiles::Until::kForever);
      const Status status = WriteTwoFiles(folder / "out", {.overwrite = overwrite, .files = &files});
      if (status.ok() && files.calls() <= call) break;
      if (!fs::exists(folder / "out")) {
        EXPECT_FALSE(overwrite);
      } else if (fs::exists(folder / "out/model.pt")) {
        ExpectWhole(folder / "out");
      } else {
        EXPECT_EQ(ReadBytes(folder / "out/autoep.json"), "old");
      }
      // The next run cleans up and succeeds.
      ASSERT_THAT(WriteTwoFiles(folder / "out", {.overwrite = true}), IsOk());
      EXPECT_THAT(folder.Names(), ElementsAre("out"));
    }
  }
}

TEST(StagedDirectory, WorksWhereRenameCannotRefuseToReplace) {
  const TempFolder folder;
  FaultyFiles counter;
  ASSERT_THAT(WriteTwoFiles(folder / "first", {.files = &counter}), IsOk());
  FaultyFiles files(counter.calls() - 2, EINVAL);
  EXPECT_THAT(WriteTwoFiles(folder / "out", {.files = &files}), IsOk());
  EXPECT_EQ(files.log()[counter.calls() - 1], "rename");
  ExpectWhole(folder / "out");
}

TEST(OutputFile, WritesThroughShortWritesAndInterruptions) {
  const TempFolder folder;
  FaultyFiles files(1, EINTR);
  files.set_max_write(3);
  const auto file = OutputFile::Create(folder / "a", &files);
  ASSERT_THAT(file, IsOk());
  const ByteSink sink = (*file)->Sink();
  ASSERT_THAT(sink("0123456789", 10), IsOk());
  EXPECT_EQ((*file)->bytes(), 10u);
  ASSERT_THAT((*file)->Finish(), IsOk());
  EXPECT_EQ(ReadBytes(folder / "a"), "0123456789");
  EXPECT_EQ((*file)->sha256(), Sha256Hex("0123456789"));
  EXPECT_THAT((*file)->Append("x"), StatusIs(Code::kBug, "after it was finished"));
  EXPECT_THAT((*file)->Finish(), StatusIs(Code::kBug, "finished twice"));
}

TEST(StagedFile, AppearsWholeOrNotAtAll) {
  FaultyFiles counter;
  {
    const TempFolder folder;
    ASSERT_THAT(WriteFileAtomically(folder / "a", "new", {.files = &counter}), IsOk());
  }
  for (const bool overwrite : {false, true}) {
    for (int call = 0; call + 1 < counter.calls(); ++call) {
      SCOPED_TRACE(counter.log()[call]);
      const TempFolder folder;
      if (overwrite) WriteBytes(folder / "a", "old");
      FaultyFiles files(call, ENOSPC);
      EXPECT_THAT(WriteFileAtomically(folder / "a", "new", {.overwrite = overwrite, .files = &files}),
                  StatusIs(Code::kOutput, "No space left on device; make room"));
      if (overwrite) {
        EXPECT_EQ(ReadBytes(folder / "a"), "old");
        EXPECT_THAT(folder.Names(), ElementsAre("a"));
      } else {
        EXPECT_THAT(folder.Names(), IsEmpty());
      }
    }
  }
}

TEST(StagedFile, ReplacesOnlyWhenAllowed) {
  const TempFolder folder;
  ASSERT_THAT(WriteFileAtomically(folder / "a", "one"), IsOk());
  EXPECT_THAT(WriteFileAtomically(folder / "a", "two"), StatusIs(Code::kOutput, "exists already"));
  EXPECT_EQ(ReadBytes(folder / "a"), "one");
  EXPECT_THAT(WriteFileAtomically(folder / "a", "two", {.overwrite = true}), IsOk());
  EXPECT_EQ(ReadBytes(folder / "a"), "two");
  EXPECT_THAT(WriteFileAtomically(folder.path(), "x", {.overwrite = true}), StatusIs(Code::kOutput, "not a regular file"));
}

TEST(Output, AReadOnlyDiskIsNamed) {
  // /proc takes no files from anyone, root included.
  EXPECT_THAT(WriteFileAtomically("/proc/autoep", "x"), StatusIs(Code::kOutput, "/proc/autoep: "));
  const TempFolder folder;
  FaultyFiles files(0, EROFS);
  EXPECT_THAT(StagedDirectory::Create(folder / "out", {.files = &files}),
              StatusIs(Code::kOutput, "Read-only file system; choose a place that can be written to"));
}

}  // namespace
}  // namespace autoep

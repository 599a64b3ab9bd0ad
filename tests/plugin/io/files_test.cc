// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/files.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "tests/plugin/io/faulty_files.h"
#include "tests/plugin/io/status_matchers.h"
#include "tests/plugin/io/temp_folder.h"

namespace autoep {
namespace {

using ::testing::ElementsAre;

TEST(MappedFile, HoldsTheBytes) {
  const TempFolder folder;
  WriteBytes(folder / "a", "twelve bytes");
  std::filesystem::create_symlink("a", folder / "link");
  const auto direct = MappedFile::Open(folder / "a");
  const auto linked = MappedFile::Open(folder / "link");
  ASSERT_THAT(direct, IsOk());
  ASSERT_THAT(linked, IsOk());
  EXPECT_EQ((*direct)->bytes(), "twelve bytes");
  EXPECT_EQ((*direct)->identity(), (*linked)->identity());
  (*direct)->Forget(0, 1 << 30);
  EXPECT_EQ((*direct)->bytes(), "twelve bytes");
}

TEST(MappedFile, OutlivesTheName) {
  const TempFolder folder;
  WriteBytes(folder / "a", "kept");
  const auto file = MappedFile::Open(folder / "a");
  ASSERT_THAT(file, IsOk());
  std::filesystem::remove(folder / "a");
  EXPECT_EQ((*file)->bytes(), "kept");
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TempFolder folder;
  WriteBytes(folder / "empty", "");
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(MappedFile::Open(folder / "missing"), StatusIs(Code::kInput, "missing: there is no such file"));
  EXPECT_THAT(MappedFile::Open(folder / "empty/below"), StatusIs(Code::kInput, "there is no such file"));
  EXPECT_THAT(MappedFile::Open(folder / "empty"), StatusIs(Code::kInput, "the file is empty"));
  EXPECT_THAT(MappedFile::Open(folder.path()), StatusIs(Code::kInput, "this is a directory, not a regular file"));
  EXPECT_THAT(MappedFile::Open(folder / "fifo"), StatusIs(Code::kInput, "this is a FIFO, not a regular file"));
  EXPECT_THAT(MappedFile::Open("/dev/null"), StatusIs(Code::kInput, "this is a device, not a regular file"));
  EXPECT_THAT(MappedFile::Open(""), StatusIs(Code::kInput, "this is not a path"));
  EXPECT_THAT(MappedFile::Open(std::string("/dev/null\0x", 11)), StatusIs(Code::kInput, "this is not a path"));
}

// Bound by a name relative to the folder: a socket's path has room for 107 bytes, and a test's folder may be longer.
TEST(MappedFile, RefusesASocket) {
  const TempFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const sockaddr_un address{AF_UNIX, "s"};
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const int bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  std::filesystem::current_path(before);
  ASSERT_EQ(bound, 0);
  EXPECT_THAT(MappedFile::Open(folder / "s"), StatusIs(Code::kInput, "not a regular file"));
  ::close(fd);
}

TEST(MappedFile, SeesThatTheFileChanged) {
  const TempFolder folder;
  WriteBytes(folder / "a", "before");
  const auto file = MappedFile::Open(folder / "a");
  ASSERT_THAT(file, IsOk());
  EXPECT_THAT((*file)->CheckUnchanged(), IsOk());
  WriteBytes(folder / "a", "before and after");
  EXPECT_THAT((*file)->CheckUnchanged(), StatusIs(Code::kInput, "the file was changed while it was being read"));
}

TEST(ReadTextFile, ReadsUpToTheLimit) {
  const TempFolder folder;
  WriteBytes(folder / "a", std::string(100, 'x'));
  WriteBytes(folder / "empty", "");
  EXPECT_EQ(*ReadTextFile(folder / "a", 100), std::string(100, 'x'));
  EXPECT_EQ(*ReadTextFile(folder / "empty", 100), "");
  EXPECT_THAT(ReadTextFile(folder / "a", 99), StatusIs(Code::kInput, "the file is larger than the 99 B that it may have"));
  EXPECT_THAT(ReadTextFile(folder.path(), 99), StatusIs(Code::kInput, "this is a directory"));
}

TEST(FileSystem, CreateNeverReplaces) {
  const TempFolder folder;
  WriteBytes(folder / "a", "kept");
  std::filesystem::create_symlink("nowhere", folder / "dangling");
  int fd = -1;
  EXPECT_EQ(FileSystem::Real().CreateFile(folder / "a", &fd), EEXIST);
  EXPECT_EQ(FileSystem::Real().CreateFile(folder / "dangling", &fd), EEXIST);
  EXPECT_EQ(ReadBytes(folder / "a"), "kept");
}

TEST(FileSystem, RenameNoReplaceAndExchange) {
  const TempFolder folder;
  FileSystem& files = FileSystem::Real();
  WriteBytes(folder / "a", "A");
  WriteBytes(folder / "b", "B");
  EXPECT_EQ(files.RenameNoReplace(folder / "a", folder / "b"), EEXIST);
  EXPECT_EQ(files.Exchange(folder / "a", folder / "b"), 0);
  EXPECT_EQ(ReadBytes(folder / "a"), "B");
  EXPECT_EQ(files.RenameNoReplace(folder / "a", folder / "c"), 0);
  EXPECT_THAT(folder.Names(), ElementsAre("b", "c"));
}

TEST(RemoveTree, RemovesAllAndFollowsNoLink) {
  const TempFolder folder;
  std::filesystem::create_directories(folder / "tree/deep/deeper");
  WriteBytes(folder / "tree/deep/file", "x");
  WriteBytes(folder / "outside", "kept");
  std::filesystem::create_symlink("..", folder / "tree/up");
  EXPECT_EQ(RemoveTree(FileSystem::Real(), folder / "tree"), 0);
  EXPECT_THAT(folder.Names(), ElementsAre("outside"));
  EXPECT_EQ(RemoveTree(FileSystem::Real(), folder / "tree"), 0);
}

TEST(RemoveTree, GoesOnAfterAFailureAndReportsIt) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "tree");
  WriteBytes(folder / "tree/a", "x");
  WriteBytes(folder / "tree/b", "x");
  FaultyFiles files(1, EIO);  // the listing, then the first removal
  EXPECT_EQ(RemoveTree(files, folder / "tree"), EIO);
  EXPECT_TRUE(std::filesystem::exists(folder / "tree/a"));
  EXPECT_FALSE(std::filesystem::exists(folder / "tree/b"));
}

}  // namespace
}  // namespace autoep

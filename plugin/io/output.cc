// SPDX-License-Identifier: Apache-2.0
// Output that appears whole or not at all.
#include "plugin/io/output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "plugin/io/output_check.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr size_t kSuffixLength = 6;

std::string StagingPrefix(const OutputPlace& place) { return "." + place.name + ".autoep-"; }

std::string RandomSuffix() {
  static constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::random_device device;
  std::uniform_int_distribution<int> letter(0, sizeof(kLetters) - 2);
  std::string suffix;
  for (size_t i = 0; i < kSuffixLength; ++i) suffix += kLetters[letter(device)];
  return suffix;
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

// Not every file system can refuse to replace. Renaming a directory never replaces a file or a directory with content, and
// the target was looked up before.
int RenameToNew(FileSystem& files, const std::string& from, const std::string& to) {
  const int error = files.RenameNoReplace(from, to);
  if (error != EINVAL && error != ENOSYS) return error;
  struct stat info;
  if (::lstat(to.c_str(), &info) == 0) return EEXIST;
  return files.Rename(from, to);
}

int OpenDirectory(const std::string& path) { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW); }

Status BusyError(const std::string& target) {
  return OutputError(target, "another autoep run is writing this output; wait for it or choose another name");
}

}  // namespace

Result<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path, FileSystem* files) {
  std::unique_ptr<OutputFile> file(new OutputFile());
  file->path_ = path;
  file->files_ = files;
  if (const int error = files->CreateFile(path, &file->fd_)) {
    file->fd_ = -1;
    return file->Fail("the file cannot be created", error);
  }
  return file;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) files_->Close(fd_);
}

Status OutputFile::Fail(std::string_view what, int error) const { return OutputError(path_, what, error); }

Status OutputFile::Append(const void* data, size_t size) {
  if (fd_ < 0) return Status(Code::kBug, fmt::format("{}: written to after it was finished", Printable(path_)));
  const char* next = static_cast<const char*>(data);
  for (size_t left = size; left > 0;) {
    size_t written = 0;
    const int error = files_->Write(fd_, next, left, &written);
    if (error == EINTR) continue;
    if (error != 0 || written == 0)
      return Fail(fmt::format("writing failed after {}", HumanBytes(bytes_)), error != 0 ? error : EIO);
    digest_.Update(next, written);
    next += written;
    left -= written;
    bytes_ += written;
  }
  return Status();
}

Status OutputFile::Finish() {
  if (fd_ < 0) return Status(Code::kBug, fmt::format("{}: finished twice", Printable(path_)));
  const int sync_error = files_->SyncFile(fd_);
  const int close_error = files_->Close(fd_);
  fd_ = -1;
  if (sync_error != 0) return Fail("the file could not be brought to the disk", sync_error);
  if (close_error != 0) return Fail("the file could not be closed", close_error);
  sha256_ = digest_.HexDigest();
  return Status();
}

ByteSink OutputFile::Sink() {
  return [this](const void* data, size_t size) { return Append(data, size); };
}

Result<std::unique_ptr<StagedDirectory>> StagedDirectory::Create(const std::string& target, OutputOptions options) {
  AUTOEP_RETURN_IF_ERROR(CheckOutput(target, OutputKind::kDirectory, options));
  AUTOEP_ASSIGN_OR_RETURN(const OutputPlace place, PlaceOutput(target));
  std::unique_ptr<StagedDirectory> staged(new StagedDirectory());
  staged->target_ = target;
  staged->parent_ = place.parent;
  staged->final_ = place.path();
  staged->options_ = std::move(options);
  int error = EEXIST;
  for (int attempt = 0; error == EEXIST && attempt < 100; ++attempt) {
    const std::string staging = OutputPlace{place.parent, StagingPrefix(place) + RandomSuffix()}.path();
    error = staged->options_.files->MakeDirectory(staging);
    if (error == 0) staged->staging_ = staging;
  }
  if (error != 0) return OutputError(target, fmt::format("nothing can be written in {}", Printable(place.parent)), error);
  AUTOEP_RETURN_IF_ERROR(staged->Lock());
  AUTOEP_RETURN_IF_ERROR(staged->RemoveStale());
  return staged;
}

// The lock says that this staging directory is alive. A run that saw it in the moment before may be removing it.
Status StagedDirectory::Lock() {
  lock_ = OpenDirectory(staging_);
  if (lock_ < 0) return errno == ENOENT ? BusyError(target_) : OutputError(target_, "the staging folder cannot be opened", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return BusyError(target_);
  struct stat info;
  if (::fstat(lock_, &info) != 0 || info.st_nlink == 0) return BusyError(target_);
  return Status();
}

Status StagedDirectory::RemoveStale() {
  const OutputPlace place{parent_, final_.substr(final_.rfind('/') + 1)};
  const std::string prefix = StagingPrefix(place);
  std::vector<std::string> names;
  if (options_.files->ListDirectory(parent_, &names) != 0) return Status();
  for (const std::string& name : names) {
    const std::string path = OutputPlace{parent_, name}.path();
    if (!name.starts_with(prefix) || name.size() != prefix.size() + kSuffixLength || path == staging_) continue;
    const int fd = OpenDirectory(path);
    if (fd < 0) continue;
    const bool busy = ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!busy) RemoveTree(*options_.files, path);
    ::close(fd);
    if (busy) return BusyError(target_);
  }
  return Status();
}

StagedDirectory::~StagedDirectory() {
  if (!staging_.empty()) RemoveTree(*options_.files, staging_);
  if (lock_ >= 0) ::close(lock_);
}

Result<std::unique_ptr<OutputFile>> StagedDirectory::CreateFile(const std::string& name) {
  if (!IsPlainName(name)) return Status(Code::kBug, fmt::format("'{}' is not a plain file name", Printable(name)));
  auto file = OutputFile::Create(staging_ + "/" + name, options_.files);
  if (!file.ok()) return file.status().At(Printable(target_));
  return file;
}

Status StagedDirectory::WriteFile(const std::string& name, std::string_view bytes) {
  AUTOEP_ASSIGN_OR_RETURN(const auto file, CreateFile(name));
  AUTOEP_RETURN_IF_ERROR(file->Append(bytes));
  return file->Finish();
}

Status StagedDirectory::Publish() {
  FileSystem& files = *options_.files;
  if (staging_.empty()) return Status(Code::kBug, fmt::format("{}: published twice", Printable(target_)));
  if (const int error = files.SyncDirectory(staging_))
    return OutputError(target_, "the output could not be brought to the disk", error);
  int error = RenameToNew(files, staging_, final_);
  const bool swap = error == EEXIST && options_.overwrite;
  if (swap) {
    AUTOEP_RETURN_IF_ERROR(
        CheckOutputPlace(target_, {parent_, final_.substr(final_.rfind('/') + 1)}, OutputKind::kDirectory, options_));
    error = files.Exchange(staging_, final_);
    if (error == EINVAL || error == ENOSYS) {
      return OutputError(target_,
                         "this file system cannot swap two directories, so the old output cannot be overwritten safely; "
                         "remove it first");
    }
  }
  if (error == EEXIST) return OutputError(target_, "something was put there while autoep was working; choose another name");
  if (error != 0) return OutputError(target_, "the finished output could not be put in its place", error);
  if (const int sync_error = files.SyncDirectory(parent_)) {
    const int undo_error = swap ? files.Exchange(staging_, final_) : files.Rename(final_, staging_);
    if (undo_error != 0 && !swap) staging_.clear();
    return OutputError(target_, "the folder could not be brought to the disk", sync_error);
  }
  const std::string old = swap ? staging_ : "";
  staging_.clear();
  if (old.empty()) return Status();
  if (const int remove_error = RemoveTree(files, old)) {
    return OutputError(target_,
                       fmt::format("the new output is in place, but the old one, now {}, could not be removed", Printable(old)),
                       remove_error);
  }
  return Status();
}

Result<std::unique_ptr<StagedFile>> StagedFile::Create(const std::string& target, OutputOptions options) {
  AUTOEP_RETURN_IF_ERROR(CheckOutput(target, OutputKind::kFile, options));
  AUTOEP_ASSIGN_OR_RETURN(const OutputPlace place, PlaceOutput(target));
  std::unique_ptr<StagedFile> staged(new StagedFile());
  staged->target_ = target;
  staged->parent_ = place.parent;
  staged->final_ = place.path();
  staged->options_ = std::move(options);
  const std::string staging = OutputPlace{place.parent, StagingPrefix(place) + RandomSuffix()}.path();
  auto file = OutputFile::Create(staging, staged->options_.files);
  if (!file.ok()) return file.status().At(Printable(target));
  staged->staging_ = staging;
  staged->file_ = std::move(file).value();
  return staged;
}

StagedFile::~StagedFile() {
  if (!staging_.empty()) options_.files->RemoveFile(staging_);
}

Status StagedFile::Publish() {
  FileSystem& files = *options_.files;
  AUTOEP_RETURN_IF_ERROR(file_->Finish());
  const int error = options_.overwrite ? files.Rename(staging_, final_) : RenameToNew(files, staging_, final_);
  if (error == EEXIST) return OutputError(target_, "something was put there while autoep was working; choose another name");
  if (error != 0) return OutputError(target_, "the finished file could not be put in its place", error);
  staging_.clear();
  if (const int sync_error = files.SyncDirectory(parent_)) {
    return OutputError(target_, "the file is in place, but its folder could not be brought to the disk", sync_error);
  }
  return Status();
}

Status WriteFileAtomically(const std::string& path, std::string_view bytes, OutputOptions options) {
  AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedFile::Create(path, std::move(options)));
  AUTOEP_RETURN_IF_ERROR(staged->file().Append(bytes));
  return staged->Publish();
}

}  // namespace autoep

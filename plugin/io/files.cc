// SPDX-License-Identifier: Apache-2.0
// Files: the mapping, and the real FileSystem over Linux system calls.
#include "plugin/io/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "plugin/io/text.h"

namespace autoep {
namespace {

int64_t ModifiedNs(const struct stat& info) {
  return static_cast<int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
}

const char* KindName(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

Status InputError(const std::string& path, std::string_view sentence) {
  return Status(Code::kInput, fmt::format("{}: {}", Printable(path), sentence));
}

Status OpenError(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR) return InputError(path, "there is no such file");
  if (error == EACCES) return InputError(path, "the file may not be read; check its permissions");
  return InputError(path, fmt::format("the file cannot be opened: {}", ErrorText(error)));
}

// O_NONBLOCK: opening a FIFO must not wait for a writer.
Result<int> OpenRegular(const std::string& path, struct stat* info) {
  if (path.empty() || path.find('\0') != std::string::npos) return InputError(path, "this is not a path");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return errno == ENXIO ? InputError(path, "this is a socket or device, not a regular file") : OpenError(path, errno);
  if (::fstat(fd, info) != 0) {
    const int error = errno;
    ::close(fd);
    return OpenError(path, error);
  }
  if (!S_ISREG(info->st_mode)) {
    ::close(fd);
    return InputError(path, fmt::format("this is {}, not a regular file", KindName(info->st_mode)));
  }
  return fd;
}

class RealFileSystem : public FileSystem {
 public:
  int CreateFile(const std::string& path, int* fd) override {
    *fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    return *fd < 0 ? errno : 0;
  }
  int Write(int fd, const void* data, size_t size, size_t* written) override {
    const ssize_t n = ::write(fd, data, size);
    *written = n < 0 ? 0 : static_cast<size_t>(n);
    return n < 0 ? errno : 0;
  }
  int SyncFile(int fd) override { return ::fsync(fd) == 0 ? 0 : errno; }
  int Close(int fd) override { return ::close(fd) == 0 ? 0 : errno; }
  int MakeDirectory(const std::string& path) override { return ::mkdir(path.c_str(), 0777) == 0 ? 0 : errno; }
  int SyncDirectory(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno;
    // Some file systems cannot sync a directory and say EINVAL: there is nothing more to be done there.
    const int error = ::fsync(fd) == 0 || errno == EINVAL ? 0 : errno;
    ::close(fd);
    return error;
  }
  int Rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
  }
  int RenameNoReplace(const std::string& from, const std::string& to) override { return Rename2(from, to, RENAME_NOREPLACE); }
  int Exchange(const std::string& a, const std::string& b) override { return Rename2(a, b, RENAME_EXCHANGE); }
  int RemoveFile(const std::string& path) override { return ::unlink(path.c_str()) == 0 ? 0 : errno; }
  int RemoveDirectory(const std::string& path) override { return ::rmdir(path.c_str()) == 0 ? 0 : errno; }
  int ListDirectory(const std::string& path, std::vector<std::string>* names) override {
    names->clear();
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return errno;
    DIR* directory = ::fdopendir(fd);
    if (directory == nullptr) {
      const int error = errno;
      ::close(fd);
      return error;
    }
    errno = 0;
    while (const dirent* entry = ::readdir(directory)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names->emplace_back(name);
      errno = 0;
    }
    const int error = errno;
    ::closedir(directory);
    std::sort(names->begin(), names->end());
    return error;
  }
  int FreeBytes(const std::string& path, uint64_t* bytes) override {
    struct statvfs info;
    if (::statvfs(path.c_str(), &info) != 0) return errno;
    *bytes = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    return 0;
  }

 private:
  static int Rename2(const std::string& from, const std::string& to, unsigned flags) {
    return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ? 0 : errno;
  }
};

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  struct stat info;
  AUTOEP_ASSIGN_OR_RETURN(const int fd, OpenRegular(path, &info));
  std::shared_ptr<MappedFile> file(new MappedFile());
  file->fd_ = fd;
  file->path_ = path;
  file->modified_ns_ = ModifiedNs(info);
  file->identity_ = {info.st_dev, info.st_ino};
  if (info.st_size == 0) return InputError(path, "the file is empty");
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return InputError(path, fmt::format("the file cannot be mapped: {}", ErrorText(errno)));
  file->data_ = static_cast<const char*>(data);
  file->size_ = size;
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
}

Status MappedFile::CheckUnchanged() const {
  struct stat info;
  if (::fstat(fd_, &info) != 0) return OpenError(path_, errno);
  if (static_cast<uint64_t>(info.st_size) == size_ && ModifiedNs(info) == modified_ns_) return Status();
  return InputError(path_, "the file was changed while it was being read; run again when nothing writes to it");
}

void MappedFile::Forget(uint64_t offset, uint64_t size) const {
  if (offset >= size_) return;
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = (offset + page - 1) / page * page;
  const uint64_t end = (offset + std::min(size, size_ - offset)) / page * page;
  if (begin >= end) return;
  ::madvise(const_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
  ::posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
}

Result<std::string> ReadTextFile(const std::string& path, uint64_t limit) {
  struct stat info;
  AUTOEP_ASSIGN_OR_RETURN(const int fd, OpenRegular(path, &info));
  std::string text;
  char buffer[1 << 16];
  ssize_t n = 0;
  while (text.size() <= limit && (n = ::read(fd, buffer, sizeof(buffer))) > 0) text.append(buffer, static_cast<size_t>(n));
  const int error = n < 0 ? errno : 0;
  ::close(fd);
  if (error != 0) return InputError(path, fmt::format("the file cannot be read: {}", ErrorText(error)));
  if (text.size() > limit)
    return InputError(path, fmt::format("the file is larger than the {} that it may have", HumanBytes(limit)));
  return text;
}

FileSystem& FileSystem::Real() {
  static RealFileSystem files;
  return files;
}

std::string ErrorText(int error) { return std::generic_category().message(error); }

int RemoveTree(FileSystem& files, const std::string& path) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return errno == ENOENT ? 0 : errno;
  if (!S_ISDIR(info.st_mode)) return files.RemoveFile(path);
  std::vector<std::string> names;
  int first = files.ListDirectory(path, &names);
  for (const std::string& name : names) {
    const int error = RemoveTree(files, path + "/" + name);
    if (first == 0) first = error;
  }
  const int error = files.RemoveDirectory(path);
  return first != 0 ? first : error;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Files to read: a read-only mapping. Files to write: FileSystem, whose every operation a test can make fail.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

// Takes the next bytes of a file that is being written.
using ByteSink = std::function<Status(const void* data, size_t size)>;

struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  bool operator==(const FileIdentity&) const = default;
};

// A regular file mapped read-only and shared; unmapped on destruction.
class MappedFile {
 public:
  // Follows symlinks. Fails (kInput) if the file is missing, unreadable, empty, or not a regular file; never blocks on a FIFO.
  static Result<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const char* data() const { return data_; }
  uint64_t size() const { return size_; }
  std::string_view bytes() const { return {data_, size_}; }
  FileIdentity identity() const { return identity_; }
  // kInput if the file's size or modification time is no longer what it was when it was opened.
  Status CheckUnchanged() const;
  // Tells the kernel that [offset, offset + size) will not be read again soon, so that big files do not fill the memory.
  void Forget(uint64_t offset, uint64_t size) const;

 private:
  MappedFile() = default;

  std::string path_;
  int fd_ = -1;
  const char* data_ = nullptr;
  uint64_t size_ = 0;
  int64_t modified_ns_ = 0;
  FileIdentity identity_;
};

// The bytes of a small text file, at most `limit`; anything else as MappedFile::Open, but an empty file is "".
Result<std::string> ReadTextFile(const std::string& path, uint64_t limit);

// What is done to the disk. Every call returns 0 or an errno value.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  static FileSystem& Real();

  virtual int CreateFile(const std::string& path, int* fd) = 0;                   // for writing; EEXIST if there is one
  virtual int Write(int fd, const void* data, size_t size, size_t* written) = 0;  // may be short
  virtual int SyncFile(int fd) = 0;
  virtual int Close(int fd) = 0;  // the descriptor is gone even when this fails
  virtual int MakeDirectory(const std::string& path) = 0;
  virtual int SyncDirectory(const std::string& path) = 0;
  virtual int Rename(const std::string& from, const std::string& to) = 0;           // replaces a file
  virtual int RenameNoReplace(const std::string& from, const std::string& to) = 0;  // EEXIST if there is one
  virtual int Exchange(const std::string& a, const std::string& b) = 0;
  virtual int RemoveFile(const std::string& path) = 0;
  virtual int RemoveDirectory(const std::string& path) = 0;                                 // an empty one
  virtual int ListDirectory(const std::string& path, std::vector<std::string>* names) = 0;  // sorted, without . and ..
  virtual int FreeBytes(const std::string& path, uint64_t* bytes) = 0;
};

// "No space left on device"
std::string ErrorText(int error);

// Removes `path` and, where it is a directory, everything below it; follows no symlink. 0 or the first errno.
int RemoveTree(FileSystem& files, const std::string& path);

}  // namespace autoep

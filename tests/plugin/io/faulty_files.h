// SPDX-License-Identifier: Apache-2.0
// FaultyFiles: the real disk, where one call fails, or every call from one on, as if the disk or the process had died.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/io/files.h"

namespace autoep {

class FaultyFiles : public FileSystem {
 public:
  enum class Until { kOnce, kForever };

  // Call number `fail_at`, counted from 0, gives `error`; a negative number never comes.
  explicit FaultyFiles(int fail_at = -1, int error = 0, Until until = Until::kOnce)
      : fail_at_(fail_at), error_(error), until_(until) {}

  int calls() const { return static_cast<int>(log_.size()); }
  // "write", "sync", ... in the order of the calls.
  const std::vector<std::string>& log() const { return log_; }
  // Every write takes at most this many bytes.
  void set_max_write(size_t bytes) { max_write_ = bytes; }
  void set_free_bytes(uint64_t bytes) { free_bytes_ = bytes; }

  int CreateFile(const std::string& path, int* fd) override { return Fails("create") ? error_ : real_.CreateFile(path, fd); }
  int Write(int fd, const void* data, size_t size, size_t* written) override {
    *written = 0;
    return Fails("write") ? error_ : real_.Write(fd, data, size < max_write_ ? size : max_write_, written);
  }
  int SyncFile(int fd) override { return Fails("sync") ? error_ : real_.SyncFile(fd); }
  int Close(int fd) override {
    const bool fails = Fails("close");
    const int error = real_.Close(fd);
    return fails ? error_ : error;
  }
  int MakeDirectory(const std::string& path) override { return Fails("mkdir") ? error_ : real_.MakeDirectory(path); }
  int SyncDirectory(const std::string& path) override { return Fails("sync directory") ? error_ : real_.SyncDirectory(path); }
  int Rename(const std::string& from, const std::string& to) override { return Fails("rename") ? error_ : real_.Rename(from, to); }
  int RenameNoReplace(const std::string& from, const std::string& to) override {
    return Fails("rename to new") ? error_ : real_.RenameNoReplace(from, to);
  }
  int Exchange(const std::string& a, const std::string& b) override { return Fails("exchange") ? error_ : real_.Exchange(a, b); }
  int RemoveFile(const std::string& path) override { return Fails("remove") ? error_ : real_.RemoveFile(path); }
  int RemoveDirectory(const std::string& path) override { return Fails("rmdir") ? error_ : real_.RemoveDirectory(path); }
  int ListDirectory(const std::string& path, std::vector<std::string>* names) override {
    return Fails("list") ? error_ : real_.ListDirectory(path, names);
  }
  int FreeBytes(const std::string& path, uint64_t* bytes) override {
    if (Fails("space")) return error_;
    const int error = real_.FreeBytes(path, bytes);
    if (free_bytes_ != UINT64_MAX) *bytes = free_bytes_;
    return error;
  }

 private:
  bool Fails(const char* what) {
    const int call = calls();
    log_.emplace_back(what);
    return fail_at_ >= 0 && (until_ == Until::kOnce ? call == fail_at_ : call >= fail_at_);
  }

  FileSystem& real_ = FileSystem::Real();
  int fail_at_;
  int error_;
  Until until_;
  size_t max_write_ = SIZE_MAX;
  uint64_t free_bytes_ = UINT64_MAX;
  std::vector<std::string> log_;
};

}  // namespace autoep

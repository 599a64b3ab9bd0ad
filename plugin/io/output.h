// SPDX-License-Identifier: Apache-2.0
// Output that appears whole or not at all: written beside its place under another name, synced, then renamed. Whatever is
// not published is removed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/files.h"
#include "plugin/io/sha256.h"
#include "plugin/io/status.h"

namespace autoep {

struct OutputOptions {
  // Replace what is there: a file, or a directory that is empty or holds `overwrite_marker`. Anything else is refused.
  bool overwrite = false;
  std::string overwrite_marker = "autoep.json";
  // Files and directories that are read: an output that is one of them or contains one is refused, by whatever path.
  std::vector<std::string> inputs = {};
  // Refuse before starting if the disk has less room than this.
  uint64_t expected_bytes = 0;
  FileSystem* files = &FileSystem::Real();
};

enum class OutputKind { kFile, kDirectory };

// All that can be said about an output before work starts: it exists, is or contains an input, its folder is missing or
// not writable, the disk is full. kOutput. Creates nothing.
Status CheckOutput(const std::string& target, OutputKind kind, const OutputOptions& options);

// A file being written. Failures are kOutput and name the file.
class OutputFile {
 public:
  static Result<std::unique_ptr<OutputFile>> Create(const std::string& path, FileSystem* files);
  ~OutputFile();  // closes; what Finish did not sync may be lost
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  Status Append(const void* data, size_t size);
  Status Append(std::string_view bytes) { return Append(bytes.data(), bytes.size()); }
  Status Finish();  // sync and close
  ByteSink Sink();  // appends; lives no longer than this
  uint64_t bytes() const { return bytes_; }
  const std::string& sha256() const { return sha256_; }  // of everything; valid after Finish

 private:
  OutputFile() = default;

  Status Fail(std::string_view what, int error) const;

  std::string path_;
  FileSystem* files_ = nullptr;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  Sha256 digest_;
  std::string sha256_;
};

// A directory being written as `.NAME.autoep-XXXXXX` beside its place `target`. One process at a time writes a target:
// a second is refused. What a killed run left behind is removed by the next run on the same target.
class StagedDirectory {
 public:
  // CheckOutput, then the staging directory.
  static Result<std::unique_ptr<StagedDirectory>> Create(const std::string& target, OutputOptions options = {});
  ~StagedDirectory();  // removes what was not published
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  const std::string& path() const { return staging_; }   // where files lie now
  const std::string& target() const { return target_; }  // where they will be, as given
  // `name` is a plain file name; a second file of the same name fails.
  Result<std::unique_ptr<OutputFile>> CreateFile(const std::string& name);
  Status WriteFile(const std::string& name, std::string_view bytes);
  // Syncs the directory, renames it to its place and syncs the parent; with overwrite, swaps and removes the old one.
  // All files must be finished. A failure leaves the target as it was. Call once.
  Status Publish();

 private:
  StagedDirectory() = default;
  Status Lock();
  Status RemoveStale();

  std::string target_;
  std::string parent_;   // canonical
  std::string final_;    // parent / name
  std::string staging_;  // "" once published or removed
  OutputOptions options_;
  int lock_ = -1;
};

// One file, the same promise: written beside its place, renamed by Publish, removed if that never came.
class StagedFile {
 public:
  static Result<std::unique_ptr<StagedFile>> Create(const std::string& target, OutputOptions options = {});
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  OutputFile& file() { return *file_; }
  Status Publish();  // finishes the file, renames it, syncs the parent

 private:
  StagedFile() = default;

  std::string target_;
  std::string parent_;
  std::string final_;
  std::string staging_;
  OutputOptions options_;
  std::unique_ptr<OutputFile> file_;
};

Status WriteFileAtomically(const std::string& path, std::string_view bytes, OutputOptions options = {});

}  // namespace autoep

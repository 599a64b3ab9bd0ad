// SPDX-License-Identifier: Apache-2.0
// What can be said about an output before work starts.
#include "plugin/io/output_check.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>

#include "plugin/io/text.h"

namespace autoep {
namespace {

std::optional<std::string> RealPath(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path.c_str(), nullptr), &std::free);
  if (resolved == nullptr) return std::nullopt;
  return std::string(resolved.get());
}

std::optional<FileIdentity> Identity(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return FileIdentity{info.st_dev, info.st_ino};
}

// Compares inodes of the input and of every folder above it, so that links, `..` and bind mounts do not matter.
Status CheckInput(const std::string& target, const std::string& final_path, const std::string& input) {
  const auto output = Identity(final_path);
  auto folder = RealPath(input);
  if (!output || !folder) return Status();  // an output that is not there contains nothing; a missing input is its reader's error
  if (Identity(*folder) == output) {
    return OutputError(target, fmt::format("the output is the input {} itself; choose another name", Printable(input)));
  }
  while (folder->size() > 1) {
    folder->resize(std::max<size_t>(folder->rfind('/'), 1));
    if (Identity(*folder) != output) continue;
    return OutputError(target,
                       fmt::format("the output is a folder that contains the input {}; choose another name", Printable(input)));
  }
  return Status();
}

Status CheckReplaceable(const std::string& target, const std::string& path, OutputKind kind, const OutputOptions& options) {
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? Status() : OutputError(target, "the output cannot be looked up", errno);
  }
  if (!options.overwrite) {
    return OutputError(target, "the output exists already; remove it, choose another name, or allow it with --overwrite");
  }
  const bool is_kind = kind == OutputKind::kFile ? S_ISREG(info.st_mode) : S_ISDIR(info.st_mode);
  if (!is_kind) {
    return OutputError(target, fmt::format("what is there is not a {}, so it is not overwritten; remove it or choose another name",
                                           kind == OutputKind::kFile ? "regular file" : "directory"));
  }
  if (kind == OutputKind::kFile) return Status();
  std::vector<std::string> names;
  if (const int error = options.files->ListDirectory(path, &names)) {
    return OutputError(target, "the directory that is there cannot be read", error);
  }
  if (names.empty() || std::find(names.begin(), names.end(), options.overwrite_marker) != names.end()) return Status();
  return OutputError(target, fmt::format("the directory that is there has no {} and so is not autoep's to overwrite; remove it or "
                                         "choose another name",
                                         options.overwrite_marker));
}

Status CheckRoom(const std::string& target, const OutputPlace& place, const OutputOptions& options) {
  if (::access(place.parent.c_str(), W_OK | X_OK) != 0) {
    return OutputError(target, fmt::format("nothing can be written in {}", Printable(place.parent)), errno);
  }
  uint64_t free_bytes = 0;
  if (options.expected_bytes == 0 || options.files->FreeBytes(place.parent, &free_bytes) != 0) return Status();
  if (free_bytes >= options.expected_bytes) return Status();
  return OutputError(target, fmt::format("the output needs {} and the disk has {} free; make room or choose another disk",
                                         HumanBytes(options.expected_bytes), HumanBytes(free_bytes)));
}

std::string_view Advice(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; make room or choose another disk";
    case EROFS:
      return "; choose a place that can be written to";
    case EACCES:
    case EPERM:
      return "; check the permissions of the folder";
    default:
      return "";
  }
}

}  // namespace

Status OutputError(const std::string& target, std::string_view sentence) {
  return Status(Code::kOutput, fmt::format("{}: {}", Printable(target), sentence));
}

Status OutputError(const std::string& target, std::string_view what, int error) {
  return OutputError(target, fmt::format("{}: {}{}", what, ErrorText(error), Advice(error)));
}

Result<OutputPlace> PlaceOutput(const std::string& target) {
  std::string path = target;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == ".." || path.find('\0') != std::string::npos) {
    return OutputError(target, "this does not name an output; give a path that ends in a new name");
  }
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  const auto parent = RealPath(folder);
  struct stat info;
  if (!parent || ::stat(parent->c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return OutputError(target, fmt::format("there is no folder {} to write into; create it first", Printable(folder)));
  }
  return OutputPlace{*parent, name};
}

Status CheckOutputPlace(const std::string& target, const OutputPlace& place, OutputKind kind, const OutputOptions& options) {
  for (const std::string& input : options.inputs) AUTOEP_RETURN_IF_ERROR(CheckInput(target, place.path(), input));
  AUTOEP_RETURN_IF_ERROR(CheckReplaceable(target, place.path(), kind, options));
  return CheckRoom(target, place, options);
}

Status CheckOutput(const std::string& target, OutputKind kind, const OutputOptions& options) {
  // "." or ".." can be a folder that holds the input: that is the better sentence.
  for (const std::string& input : options.inputs) AUTOEP_RETURN_IF_ERROR(CheckInput(target, target, input));
  AUTOEP_ASSIGN_OR_RETURN(const OutputPlace place, PlaceOutput(target));
  return CheckOutputPlace(target, place, kind, options);
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The pre-flight: names, kinds of packing and placement of all records.
#include "plugin/io/zip_directory.h"

#include <fmt/format.h>

#include <algorithm>

#include "plugin/io/checked.h"
#include "plugin/io/sha256.h"
#include "plugin/io/text.h"
#include "plugin/io/zip_format.h"
#include "plugin/io/zip_kind.h"

namespace autoep {
namespace {

// Code compresses 3 to 10 times, a long run of blanks perhaps 200 times.
constexpr uint64_t kMaxRatio = 1000;
constexpr uint64_t kMaxDeflatedTotal = 1u << 30;

Status Bad(std::string sentence) { return Status(Code::kInput, std::move(sentence)); }

// The part of `name` behind the root folder, which must be `*root` once that is known.
Result<std::string> NameBelowRoot(std::string_view name, std::string* root) {
  const auto bad = [&](std::string_view why) { return Bad(fmt::format("the record name '{}' {}", Printable(name), why)); };
  if (!IsUtf8(name)) return bad("is not UTF-8");
  const bool control = std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; });
  if (control) return bad("has control characters");
  if (name.find('\\') != std::string_view::npos) return bad("has a backslash");
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..")
      return bad("is absolute, ends in '/', or has a part that is empty, '.' or '..'");
    begin = end + 1;
  }
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return bad("lies outside the archive's root folder");
  if (root->empty()) *root = std::string(name.substr(0, slash));
  if (name.substr(0, slash) != *root) return bad(fmt::format("lies outside the archive's root folder '{}'", Printable(*root)));
  return std::string(name.substr(slash + 1));
}

Status CheckPacking(const ZipRecord& record, uint64_t* deflated_total) {
  if (!record.deflated) return Status();
  const auto bad = [&](std::string_view why) { return Bad(fmt::format("the record '{}' {}", Printable(record.name), why)); };
  if (!record.name.starts_with("code/") && !record.name.ends_with(".debug_pkl"))
    return bad("is compressed, and torch compresses code only");
  if (record.size / kMaxRatio > record.packed)
    return bad(fmt::format("claims to unpack from {} to {}", HumanBytes(record.packed), HumanBytes(record.size)));
  const auto total = CheckedAdd(*deflated_total, record.size);
  if (!total || *total > kMaxDeflatedTotal)
    return bad(fmt::format("brings the unpacked code above {}", HumanBytes(kMaxDeflatedTotal)));
  *deflated_total = *total;
  return Status();
}

std::string LowerAscii(std::string name) {
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name;
}

// LibTorch looks records up without regard to case, so two such names are one to it.
Status CheckDistinct(const std::vector<ZipRecord>& records) {
  std::vector<std::pair<std::string, const ZipRecord*>> names;
  for (const ZipRecord& record : records) names.emplace_back(LowerAscii(record.name), &record);
  std::sort(names.begin(), names.end());
  const auto twice =
      std::adjacent_find(names.begin(), names.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice == names.end()) return Status();
  const std::string& first = twice->second->name;
  const std::string& second = std::next(twice)->second->name;
  if (first == second) return Bad(fmt::format("the record '{}' occurs twice", Printable(first)));
  return Bad(fmt::format("the records '{}' and '{}' differ only in case, and LibTorch would take one for the other",
                         Printable(first), Printable(second)));
}

// Entries must be sorted by place.
Result<std::vector<ZipRecord>> CheckRecords(std::string_view bytes, const std::vector<ZipEntry>& entries, uint64_t directory_offset,
                                            std::string* root) {
  std::vector<ZipRecord> records;
  uint64_t deflated_total = 0;
  if (entries.empty()) return Bad("the archive has no records");
  if (entries.front().header_offset != 0) return Bad(fmt::format("{} bytes precede the archive", entries.front().header_offset));
  for (size_t i = 0; i < entries.size(); ++i) {
    const ZipEntry& entry = entries[i];
    ZipRecord record;
    AUTOEP_ASSIGN_OR_RETURN(record.name, NameBelowRoot(entry.name, root));
    record.size = entry.size;
    record.packed = entry.packed;
    record.crc = entry.crc;
    record.deflated = entry.method == kZipDeflated;
    AUTOEP_RETURN_IF_ERROR(CheckPacking(record, &deflated_total));
    const uint64_t next = i + 1 < entries.size() ? entries[i + 1].header_offset : directory_offset;
    AUTOEP_ASSIGN_OR_RETURN(record.offset, CheckLocalHeader(bytes, entry, next));
    records.push_back(std::move(record));
  }
  AUTOEP_RETURN_IF_ERROR(CheckDistinct(records));
  return records;
}

}  // namespace

Result<ZipDirectory> ZipDirectory::Parse(std::string_view bytes, const std::string& path) {
  const auto at_path = [&](const Status& status) { return status.At(Printable(path)); };
  if (const Status magic = CheckZipMagic(bytes); !magic.ok()) return at_path(magic);
  const auto end = ReadZipEnd(bytes);
  if (!end.ok()) return at_path(end.status());
  auto entries = ReadZipEntries(bytes, *end);
  if (!entries.ok()) return at_path(entries.status());
  std::stable_sort(entries->begin(), entries->end(),
                   [](const ZipEntry& a, const ZipEntry& b) { return a.header_offset < b.header_offset; });
  ZipDirectory directory;
  directory.bytes_ = bytes;
  directory.path_ = path;
  auto records = CheckRecords(bytes, *entries, end->directory_offset, &directory.root_);
  if (!records.ok()) return at_path(records.status());
  directory.records_ = std::move(records).value();
  for (const ZipRecord& record : directory.records_) directory.index_.emplace(record.name, directory.index_.size());
  directory.digest_ = Sha256Hex(bytes.substr(end->directory_offset, end->directory_size));
  if (const Status kind = CheckTorchScript(directory); !kind.ok()) return at_path(kind);
  return directory;
}

Result<ZipDirectory> ZipDirectory::Open(std::shared_ptr<const MappedFile> file) {
  AUTOEP_ASSIGN_OR_RETURN(ZipDirectory directory, Parse(file->bytes(), file->path()));
  directory.file_ = std::move(file);
  return directory;
}

Result<ZipDirectory> ZipDirectory::Open(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  return Open(std::move(file));
}

const ZipRecord* ZipDirectory::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &records_[found->second];
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Archive over the strict zip directory: which records are checked, and when.
#include "passes/model/archive.h"

#include <algorithm>
#include <utility>

namespace autoep {
namespace {

bool IsTensorKey(std::string_view key) {
  return !key.empty() && std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool Archive::IsTensorRecord(std::string_view name) {
  for (std::string_view folder : {"data/", "constants/"}) {
    if (name.substr(0, folder.size()) == folder) return IsTensorKey(name.substr(folder.size()));
  }
  return false;
}

Archive::Archive(ZipDirectory zip) : zip_(std::move(zip)) {
  for (const ZipRecord& record : zip_.records()) {
    if (IsTensorRecord(record.name)) tensor_records_.push_back(&record);
  }
  std::sort(tensor_records_.begin(), tensor_records_.end(),
            [](const ZipRecord* a, const ZipRecord* b) { return a->offset < b->offset; });
}

Result<std::shared_ptr<Archive>> Archive::Open(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(ZipDirectory zip, ZipDirectory::Open(path));
  std::shared_ptr<Archive> archive(new Archive(std::move(zip)));
  for (const ZipRecord& record : archive->zip_.records()) {
    if (!IsTensorRecord(record.name)) AUTOEP_RETURN_IF_ERROR(archive->zip_.CheckCrc(record));
  }
  return archive;
}

const ZipRecord* Archive::RecordAt(const void* address) const {
  const auto offset = static_cast<uint64_t>(static_cast<const char*>(address) - zip_.file()->data());
  if (offset >= zip_.bytes()) return nullptr;
  auto next = std::upper_bound(tensor_records_.begin(), tensor_records_.end(), offset,
                               [](uint64_t value, const ZipRecord* record) { return value < record->offset; });
  if (next == tensor_records_.begin()) return nullptr;
  const ZipRecord* record = *std::prev(next);
  return offset < record->offset + record->size ? record : nullptr;
}

Status Archive::CheckTensorRecord(const void* address) {
  const ZipRecord* record = RecordAt(address);
  if (record == nullptr || checked_.count(record) > 0) return Status();
  AUTOEP_RETURN_IF_ERROR(zip_.CheckCrc(*record));
  checked_.insert(record);
  return Status();
}

Status Archive::CheckAllRecords() const {
  for (const ZipRecord& record : zip_.records()) AUTOEP_RETURN_IF_ERROR(zip_.CheckCrc(record));
  return Status();
}

Status Archive::CheckUnchanged() const { return zip_.file()->CheckUnchanged(); }

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Archive: a pre-flighted, memory-mapped .pt. Code and pickle records are CRC-checked on opening; a tensor record when its
// bytes are first asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/status.h"
#include "plugin/io/zip_directory.h"

namespace autoep {

class Archive {
 public:
  // Fails with kInput and one sentence.
  static Result<std::shared_ptr<Archive>> Open(const std::string& path);

  const std::string& path() const { return zip_.path(); }
  const std::string& digest() const { return zip_.digest(); }  // sha256 of the central directory, hex
  int64_t bytes() const { return static_cast<int64_t>(zip_.bytes()); }
  const ZipDirectory& zip() const { return zip_; }

  // "data/N" and "constants/N": the records that hold tensors' storages.
  static bool IsTensorRecord(std::string_view name);
  // The tensor record whose bytes hold `address`, or null.
  const ZipRecord* RecordAt(const void* address) const;
  // CRC-checks the tensor record that holds `address`, once.
  Status CheckTensorRecord(const void* address);
  Status CheckAllRecords() const;
  // kInput if the file was written to since it was opened.
  Status CheckUnchanged() const;

 private:
  explicit Archive(ZipDirectory zip);

  ZipDirectory zip_;
  std::vector<const ZipRecord*> tensor_records_;  // by offset
  std::set<const ZipRecord*> checked_;
};

}  // namespace autoep

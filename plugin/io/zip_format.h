// SPDX-License-Identifier: Apache-2.0
// The zip format as torch writes it: end record, central directory, local headers. Structure only; what a TorchScript
// archive may hold is zip_directory.cc's. Failures are kInput sentences without the file's name.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

struct ZipEnd {
  uint64_t entries = 0;
  uint64_t directory_offset = 0;
  uint64_t directory_size = 0;
};

struct ZipEntry {
  std::string_view name;  // with the root folder
  uint16_t flags = 0;
  uint16_t method = 0;
  uint32_t crc = 0;
  uint64_t packed = 0;
  uint64_t size = 0;
  uint64_t header_offset = 0;
};

inline constexpr uint16_t kZipStored = 0;
inline constexpr uint16_t kZipDeflated = 8;

// The end record must be the file's last bytes, and the directory must reach up to it.
Result<ZipEnd> ReadZipEnd(std::string_view bytes);

// All entries, in the directory's order.
Result<std::vector<ZipEntry>> ReadZipEntries(std::string_view bytes, const ZipEnd& end);

// Checks the local header against the directory's entry, and that the record ends exactly where the next one begins.
// Returns the offset of the record's data.
Result<uint64_t> CheckLocalHeader(std::string_view bytes, const ZipEntry& entry, uint64_t next_offset);

}  // namespace autoep

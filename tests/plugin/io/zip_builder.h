// SPDX-License-Identifier: Apache-2.0
// Builds zip files as torch does, and every way of being wrong.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace autoep {

struct ZipPart {
  std::string name;
  std::string data = {};  // unpacked
  bool deflate = false;
  // What the directory, the local header and the descriptor say; each as it should be where nothing is given.
  std::optional<uint16_t> method = {};
  std::optional<uint16_t> flags = {};
  std::optional<uint32_t> crc = {};
  std::optional<uint64_t> size = {};
  std::optional<uint64_t> packed = {};
  std::optional<uint64_t> header_offset = {};
  std::optional<std::string> local_name = {};
  std::optional<uint16_t> local_flags = {};
  std::optional<uint32_t> local_crc = {};
  std::optional<uint32_t> local_size = {};
  std::optional<std::string> packed_bytes = {};  // in place of the packed data
  std::string directory_extra = {};
  std::string local_extra = std::string("FB\x02\0ZZ", 6);
  std::string comment = {};
  uint16_t disk = 0;
  bool described = true;         // a descriptor follows the data
  bool wide_descriptor = false;  // with 8-byte sizes
  std::optional<uint32_t> descriptor_crc = {};
  std::string gap = {};  // bytes behind the record
};

struct ZipShape {
  std::string prefix = {};
  std::string before_directory = {};
  std::string after_directory = {};
  uint16_t comment_size = 0;
  std::string suffix = {};
  bool zip64 = true;
  std::optional<uint64_t> entries = {};
  std::optional<uint64_t> directory_offset = {};
  std::optional<uint64_t> directory_size = {};
  std::optional<uint16_t> small_entries = {};  // the 16-bit count of the old end record
  std::optional<uint64_t> locator_offset = {};
  uint32_t disk = 0;
  uint32_t parts = 1;
};

std::string BuildZip(const std::vector<ZipPart>& parts, const ZipShape& shape = {});

// The records that every TorchScript archive has, and two tensors.
std::vector<ZipPart> TorchScriptParts();

// A zip64 extra field with these 8-byte values.
std::string Zip64Extra(const std::vector<uint64_t>& values);

}  // namespace autoep

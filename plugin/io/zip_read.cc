// SPDX-License-Identifier: Apache-2.0
// Reading records: CRC-32 and inflation, never more than the directory says.
#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <functional>

#include "plugin/io/sha256.h"
#include "plugin/io/text.h"
#include "plugin/io/zip_directory.h"

namespace autoep {
namespace {

constexpr size_t kChunk = 1 << 16;

// Inflates `packed`, handing pieces to `take`, and stops as soon as more than `size` bytes come out. True if exactly `size`
// bytes came out of all of `packed`, whose last, unused bits are zero as every compressor leaves them.
bool Inflate(std::string_view packed, uint64_t size, const std::function<void(const char*, size_t)>& take) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
  std::vector<char> buffer(kChunk);
  uint64_t produced = 0;
  bool clean_end = false;
  int state = Z_OK;
  while (state == Z_OK && produced <= size) {
    if (stream.avail_in == 0) {
      const size_t piece = std::min<size_t>(packed.size(), 1u << 30);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
      stream.avail_in = static_cast<uInt>(piece);
      packed.remove_prefix(piece);
    }
    stream.next_out = reinterpret_cast<Bytef*>(buffer.data());
    stream.avail_out = kChunk;
    // Z_BLOCK stops behind the last block, where zlib still tells (64: last, 128: behind a block) how many bits it did not use.
    state = inflate(&stream, Z_BLOCK);
    if (state == Z_OK && (stream.data_type & 192) == 192) {
      const int unused_bits = stream.data_type & 7;
      clean_end = unused_bits == 0 || stream.next_in[-1] >> (8 - unused_bits) == 0;
    }
    const size_t got = kChunk - stream.avail_out;
    produced += got;
    if (produced <= size) take(buffer.data(), got);
  }
  const bool all_read = stream.avail_in == 0 && packed.empty() && clean_end;
  inflateEnd(&stream);
  return state == Z_STREAM_END && produced == size && all_read;
}

Status Damaged(const ZipDirectory& directory, const ZipRecord& record) {
  return Status(Code::kInput,
                fmt::format("{}: the record '{}' is damaged: its bytes do not have the CRC-32 that the archive gives them; "
                            "copy or save the file again",
                            Printable(directory.path()), Printable(record.name)));
}

}  // namespace

Status ZipDirectory::CheckCrc(const ZipRecord& record) const {
  const std::string_view packed = Packed(record);
  uint32_t crc = 0;
  if (!record.deflated) {
    crc = Crc32(packed.data(), packed.size());
  } else if (!Inflate(packed, record.size, [&](const char* data, size_t size) { crc = Crc32(data, size, crc); })) {
    return Damaged(*this, record);
  }
  return crc == record.crc ? Status() : Damaged(*this, record);
}

Result<std::string> ZipDirectory::Read(const ZipRecord& record) const {
  const std::string_view packed = Packed(record);
  std::string bytes;
  if (!record.deflated) {
    bytes = packed;
  } else if (!Inflate(packed, record.size, [&](const char* data, size_t size) { bytes.append(data, size); })) {
    return Damaged(*this, record);
  }
  if (Crc32(bytes.data(), bytes.size()) != record.crc) return Damaged(*this, record);
  return bytes;
}

}  // namespace autoep

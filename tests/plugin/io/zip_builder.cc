// SPDX-License-Identifier: Apache-2.0
// Builds zip files as torch does, and every way of being wrong.
#include "tests/plugin/io/zip_builder.h"

#include <zlib.h>

#include "plugin/io/sha256.h"

namespace autoep {
namespace {

std::string Le(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

std::string Deflate(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace

std::string Zip64Extra(const std::vector<uint64_t>& values) {
  std::string out = Le(1, 2) + Le(8 * values.size(), 2);
  for (uint64_t value : values) out += Le(value, 8);
  return out;
}

std::string BuildZip(const std::vector<ZipPart>& parts, const ZipShape& shape) {
  std::string out = shape.prefix;
  std::string directory;
  for (const ZipPart& part : parts) {
    const std::string packed_bytes = part.packed_bytes.value_or(part.deflate ? Deflate(part.data) : part.data);
    const uint64_t size = part.size.value_or(part.data.size());
    const uint64_t packed = part.packed.value_or(packed_bytes.size());
    const uint32_t crc = part.crc.value_or(Crc32(part.data.data(), part.data.size()));
    const uint16_t method = part.method.value_or(part.deflate ? 8 : 0);
    const uint16_t flags = part.flags.value_or(part.described ? 0x808 : 0x800);
    const std::string local_name = part.local_name.value_or(part.name);
    const uint64_t offset = part.header_offset.value_or(out.size());
    out += Le(0x04034b50, 4) + Le(0, 2) + Le(part.local_flags.value_or(flags), 2) + Le(method, 2) + Le(0, 4);
    out += Le(part.local_crc.value_or(part.described ? 0 : crc), 4) + Le(part.described ? 0 : packed, 4);
    out += Le(part.local_size.value_or(part.described ? 0 : size), 4);
    out += Le(local_name.size(), 2) + Le(part.local_extra.size(), 2) + local_name + part.local_extra + packed_bytes;
    if (part.described) {
      const int width = part.wide_descriptor ? 8 : 4;
      out += Le(0x08074b50, 4) + Le(part.descriptor_crc.value_or(crc), 4) + Le(packed, width) + Le(size, width);
    }
    out += part.gap;
    directory += Le(0x02014b50, 4) + Le(0, 4) + Le(flags, 2) + Le(method, 2) + Le(0, 4) + Le(crc, 4) + Le(packed, 4) + Le(size, 4);
    directory +=
        Le(part.name.size(), 2) + Le(part.directory_extra.size(), 2) + Le(part.comment.size(), 2) + Le(part.disk, 2) + Le(0, 6);
    directory += Le(offset, 4) + part.name + part.directory_extra + part.comment;
  }
  out += shape.before_directory;
  const uint64_t offset = shape.directory_offset.value_or(out.size());
  const uint64_t size = shape.directory_size.value_or(directory.size());
  const uint64_t entries = shape.entries.value_or(parts.size());
  out += directory + shape.after_directory;
  if (shape.zip64) {
    const uint64_t at = shape.locator_offset.value_or(out.size());
    out += Le(0x06064b50, 4) + Le(44, 8) + Le(0, 4) + Le(shape.disk, 4) + Le(0, 4) + Le(entries, 8) + Le(entries, 8);
    out += Le(size, 8) + Le(offset, 8);
    out += Le(0x07064b50, 4) + Le(0, 4) + Le(at, 8) + Le(shape.parts, 4);
  }
  const uint64_t small_entries = shape.small_entries.value_or(static_cast<uint16_t>(entries));
  out += Le(0x06054b50, 4) + Le(shape.zip64 ? 0 : shape.disk, 4) + Le(small_entries, 2) + Le(small_entries, 2) + Le(size, 4) +
         Le(offset, 4);
  return out + Le(shape.comment_size, 2) + shape.suffix;
}

std::vector<ZipPart> TorchScriptParts() {
  std::vector<ZipPart> parts(7);
  parts[0] = {.name = "m/data/0", .data = std::string(100, 'a')};
  parts[1] = {.name = "m/data/1", .data = "tensor bytes"};
  parts[2] = {.name = "m/data.pkl", .data = "\x80\x02}."};
  parts[3] = {.name = "m/code/__torch__.py", .data = "class M(Module):\n  pass\n  pass\n  pass\n", .deflate = true};
  parts[4] = {.name = "m/constants.pkl", .data = "\x80\x02)."};
  parts[5] = {.name = "m/version", .data = "3\n"};
  parts[6] = {.name = "m/byteorder", .data = "little"};
  return parts;
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The zip format as torch writes it.
#include "plugin/io/zip_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "plugin/io/checked.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kDescriptorSignature = 0x08074b50;
constexpr uint64_t kEndSize = 22;
constexpr uint64_t kEnd64Size = 56;
constexpr uint64_t kLocator64Size = 20;
constexpr uint64_t kEntrySize = 46;
constexpr uint64_t kLocalSize = 30;
constexpr uint64_t kDescriptorSize = 16;
constexpr uint64_t kDescriptor64Size = 24;
constexpr uint16_t kZip64Extra = 0x0001;
constexpr uint16_t kFlagDescriptor = 0x0008;
constexpr uint16_t kFlagUtf8 = 0x0800;
constexpr uint32_t kSentinel32 = 0xFFFFFFFF;
constexpr uint16_t kSentinel16 = 0xFFFF;

template <typename T>
T Read(std::string_view bytes, uint64_t offset) {
  T value = 0;
  for (size_t i = sizeof(T); i-- > 0;)
    value = static_cast<T>(static_cast<uint64_t>(value) << 8 | static_cast<unsigned char>(bytes[offset + i]));
  return value;
}

Status Bad(std::string sentence) { return Status(Code::kInput, std::move(sentence)); }

Status BadEntry(const ZipEntry& entry, std::string_view sentence) {
  return Bad(fmt::format("the record '{}' {}", Printable(entry.name), sentence));
}

// Why there is no end record in the last bytes.
Status NoEnd(std::string_view bytes) {
  static constexpr std::string_view kSignature = "PK\x05\x06";
  const size_t found = bytes.rfind(kSignature);
  if (found != std::string_view::npos && bytes.size() - found > kEndSize) {
    return Bad(fmt::format("{} bytes follow the end of the archive: the file was appended to or is damaged",
                           bytes.size() - found - kEndSize));
  }
  return Bad("the archive has no end: the file is truncated; copy or save it again");
}

Status CheckField(std::string_view what, uint64_t small, uint64_t sentinel, uint64_t value) {
  if (small == sentinel || small == value) return Status();
  return Bad(fmt::format("the archive's two end records disagree about the {}: {} and {}", what, small, value));
}

// Takes the next size from a zip64 extra field where the 32-bit one is full.
bool Widen(uint64_t* value, std::string_view* extra) {
  if (*value != kSentinel32) return true;
  if (extra->size() < 8) return false;
  *value = Read<uint64_t>(*extra, 0);
  extra->remove_prefix(8);
  return true;
}

// The content of the zip64 field among the extra fields, "" if there is none; nullopt if they are malformed.
std::optional<std::string_view> FindZip64(std::string_view extra) {
  std::optional<std::string_view> found;
  while (!extra.empty()) {
    if (extra.size() < 4) return std::nullopt;
    const uint16_t id = Read<uint16_t>(extra, 0);
    const uint16_t size = Read<uint16_t>(extra, 2);
    if (extra.size() - 4 < size) return std::nullopt;
    if (id == kZip64Extra) {
      if (found) return std::nullopt;
      found = extra.substr(4, size);
    }
    extra.remove_prefix(4 + size);
  }
  return found.value_or(std::string_view());
}

Status CheckEntry(const ZipEntry& entry) {
  if ((entry.flags & ~(kFlagDescriptor | kFlagUtf8)) != 0) {
    return BadEntry(entry, fmt::format("has flags {:#x} (encrypted or unusual), which torch does not write", entry.flags));
  }
  if (entry.method != kZipStored && entry.method != kZipDeflated) {
    return BadEntry(entry, fmt::format("is packed by method {}, which torch does not write", entry.method));
  }
  if (entry.method == kZipStored && entry.packed != entry.size) {
    return BadEntry(entry, fmt::format("is stored, and yet its sizes differ: {} and {}", entry.packed, entry.size));
  }
  return Status();
}

// The bytes behind the data: none, or a descriptor that repeats CRC and sizes in 4 or 8 bytes.
Status CheckDescriptor(std::string_view bytes, const ZipEntry& entry, uint64_t data_end, uint64_t next_offset) {
  const uint64_t size = next_offset - data_end;
  const bool present = (entry.flags & kFlagDescriptor) != 0;
  if (!present && size == 0) return Status();
  if (!present || (size != kDescriptorSize && size != kDescriptor64Size)) {
    return BadEntry(entry, fmt::format("is followed by {} bytes that belong to nothing", size));
  }
  const bool wide = size == kDescriptor64Size;
  const uint64_t packed = wide ? Read<uint64_t>(bytes, data_end + 8) : Read<uint32_t>(bytes, data_end + 8);
  const uint64_t unpacked = wide ? Read<uint64_t>(bytes, data_end + 16) : Read<uint32_t>(bytes, data_end + 12);
  const bool same = Read<uint32_t>(bytes, data_end) == kDescriptorSignature && Read<uint32_t>(bytes, data_end + 4) == entry.crc &&
                    packed == entry.packed && unpacked == entry.size;
  return same ? Status() : BadEntry(entry, "has sizes or a CRC in its data descriptor that are not the directory's");
}

}  // namespace

Result<ZipEnd> ReadZipEnd(std::string_view bytes) {
  if (bytes.size() < kEndSize) return NoEnd(bytes);
  const uint64_t at = bytes.size() - kEndSize;
  if (Read<uint32_t>(bytes, at) != kEndSignature) return NoEnd(bytes);
  if (Read<uint16_t>(bytes, at + 20) != 0) return Bad("the archive has a comment, which torch does not write");
  const uint16_t entries = Read<uint16_t>(bytes, at + 10);
  const uint32_t size = Read<uint32_t>(bytes, at + 12);
  const uint32_t offset = Read<uint32_t>(bytes, at + 16);
  if (Read<uint32_t>(bytes, at + 4) != 0 || Read<uint16_t>(bytes, at + 8) != entries)
    return Bad("the archive is one part of several");
  ZipEnd end{entries, offset, size};
  uint64_t directory_end = at;
  if (at >= kLocator64Size && Read<uint32_t>(bytes, at - kLocator64Size) == kLocator64Signature) {
    const uint64_t locator = at - kLocator64Size;
    if (locator < kEnd64Size || Read<uint64_t>(bytes, locator + 8) != locator - kEnd64Size)
      return Bad("the archive's zip64 end record is misplaced");
    directory_end = locator - kEnd64Size;
    if (Read<uint32_t>(bytes, directory_end) != kEnd64Signature || Read<uint64_t>(bytes, directory_end + 4) != kEnd64Size - 12) {
      return Bad("the archive's zip64 end record is malformed");
    }
    end = {Read<uint64_t>(bytes, directory_end + 32), Read<uint64_t>(bytes, directory_end + 48),
           Read<uint64_t>(bytes, directory_end + 40)};
    const bool one_part = Read<uint32_t>(bytes, locator + 4) == 0 && Read<uint32_t>(bytes, locator + 16) == 1 &&
                          Read<uint64_t>(bytes, directory_end + 16) == 0 &&
                          Read<uint64_t>(bytes, directory_end + 24) == end.entries;
    if (!one_part) return Bad("the archive is one part of several");
    AUTOEP_RETURN_IF_ERROR(CheckField("number of records", entries, kSentinel16, end.entries));
    AUTOEP_RETURN_IF_ERROR(CheckField("directory's size", size, kSentinel32, end.directory_size));
    AUTOEP_RETURN_IF_ERROR(CheckField("directory's place", offset, kSentinel32, end.directory_offset));
  }
  const auto claimed_end = CheckedAdd(end.directory_offset, end.directory_size);
  if (!claimed_end || *claimed_end != directory_end) {
    return Bad(fmt::format("the directory should take {} bytes from {} on, and its end is at {}: bytes were added, lost or damaged",
                           end.directory_size, end.directory_offset, directory_end));
  }
  return end;
}

Result<std::vector<ZipEntry>> ReadZipEntries(std::string_view bytes, const ZipEnd& end) {
  const std::string_view directory = bytes.substr(end.directory_offset, end.directory_size);
  // Checked before anything is reserved: the count is the file's claim.
  if (end.entries > directory.size() / kEntrySize)
    return Bad(fmt::format("the directory is too small for its {} records", end.entries));
  std::vector<ZipEntry> entries;
  entries.reserve(end.entries);
  uint64_t at = 0;
  for (uint64_t i = 0; i < end.entries; ++i) {
    const auto bad = [&](std::string_view sentence) { return Bad(fmt::format("the directory's record {} {}", i, sentence)); };
    if (directory.size() - at < kEntrySize) return bad("is cut off");
    if (Read<uint32_t>(directory, at) != kEntrySignature) return bad("has no signature");
    const uint64_t name_size = Read<uint16_t>(directory, at + 28);
    const uint64_t extra_size = Read<uint16_t>(directory, at + 30);
    if (Read<uint16_t>(directory, at + 32) != 0) return bad("has a comment, which torch does not write");
    if (directory.size() - at - kEntrySize < name_size + extra_size) return bad("is cut off");
    ZipEntry entry;
    entry.name = directory.substr(at + kEntrySize, name_size);
    entry.flags = Read<uint16_t>(directory, at + 8);
    entry.method = Read<uint16_t>(directory, at + 10);
    entry.crc = Read<uint32_t>(directory, at + 16);
    entry.packed = Read<uint32_t>(directory, at + 20);
    entry.size = Read<uint32_t>(directory, at + 24);
    entry.header_offset = Read<uint32_t>(directory, at + 42);
    if (Read<uint16_t>(directory, at + 34) != 0) return BadEntry(entry, "lies in another part of the archive");
    auto zip64 = FindZip64(directory.substr(at + kEntrySize + name_size, extra_size));
    if (!zip64 || !Widen(&entry.size, &*zip64) || !Widen(&entry.packed, &*zip64) || !Widen(&entry.header_offset, &*zip64)) {
      return BadEntry(entry, "has malformed extra fields");
    }
    AUTOEP_RETURN_IF_ERROR(CheckEntry(entry));
    entries.push_back(entry);
    at += kEntrySize + name_size + extra_size;
  }
  if (at != directory.size()) return Bad(fmt::format("{} bytes follow the directory's last record", directory.size() - at));
  return entries;
}

Result<uint64_t> CheckLocalHeader(std::string_view bytes, const ZipEntry& entry, uint64_t next_offset) {
  const uint64_t at = entry.header_offset;
  if (next_offset < at || next_offset - at < kLocalSize || next_offset > bytes.size())
    return BadEntry(entry, "overlaps the one behind it");
  const uint64_t room = next_offset - at - kLocalSize;
  if (Read<uint32_t>(bytes, at) != kLocalSignature) return BadEntry(entry, "has no header where the directory says");
  const uint64_t name_size = Read<uint16_t>(bytes, at + 26);
  const uint64_t extra_size = Read<uint16_t>(bytes, at + 28);
  if (name_size + extra_size > room || entry.packed > room - name_size - extra_size)
    return BadEntry(entry, "overlaps the one behind it");
  const auto zip64 = FindZip64(bytes.substr(at + kLocalSize + name_size, extra_size));
  if (!zip64) return BadEntry(entry, "has malformed extra fields");
  const bool same = bytes.substr(at + kLocalSize, name_size) == entry.name && Read<uint16_t>(bytes, at + 6) == entry.flags &&
                    Read<uint16_t>(bytes, at + 8) == entry.method;
  if (!same) return BadEntry(entry, "has a header that is not the directory's");
  const bool described = (entry.flags & kFlagDescriptor) != 0;
  const auto agrees = [&](uint64_t value, uint64_t expected) {
    return value == expected || (described && value == 0) || (value == kSentinel32 && !zip64->empty());
  };
  if (!agrees(Read<uint32_t>(bytes, at + 14), entry.crc) || !agrees(Read<uint32_t>(bytes, at + 18), entry.packed) ||
      !agrees(Read<uint32_t>(bytes, at + 22), entry.size)) {
    return BadEntry(entry, "has a size or CRC in its header that is not the directory's");
  }
  const uint64_t data = at + kLocalSize + name_size + extra_size;
  AUTOEP_RETURN_IF_ERROR(CheckDescriptor(bytes, entry, data + entry.packed, next_offset));
  return data;
}

}  // namespace autoep

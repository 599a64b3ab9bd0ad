// SPDX-License-Identifier: Apache-2.0
// The pre-flight of a TorchScript .pt: everything about the zip that can be checked without reading a tensor, because
// LibTorch checks next to nothing of it. Stricter than any zip tool: what torch never writes is refused.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/files.h"
#include "plugin/io/status.h"

namespace autoep {

struct ZipRecord {
  std::string name;       // below the root folder: "data/0", "code/__torch__/m.py"
  uint64_t offset = 0;    // of the first data byte in the file
  uint64_t size = 0;      // bytes when unpacked
  uint64_t packed = 0;    // bytes in the file
  uint32_t crc = 0;       // CRC-32 of the unpacked bytes
  bool deflated = false;  // else stored: packed == size
};

class ZipDirectory {
 public:
  // Reads the central directory and the local headers only. Fails with kInput and one sentence that begins with the path
  // and says what the file is instead, where that is known: empty, truncated, a plain torch.save file, a legacy pickle, a
  // safetensors file.
  static Result<ZipDirectory> Open(const std::string& path);
  static Result<ZipDirectory> Open(std::shared_ptr<const MappedFile> file);
  // `bytes` must outlive the result; `path` is for messages.
  static Result<ZipDirectory> Parse(std::string_view bytes, const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& root() const { return root_; }                   // "archive": the folder that holds every record
  const std::string& digest() const { return digest_; }               // sha256 of the raw central directory, hex
  uint64_t bytes() const { return bytes_.size(); }                    // the file's size
  const std::vector<ZipRecord>& records() const { return records_; }  // in file order
  const ZipRecord* Find(std::string_view name) const;
  const std::shared_ptr<const MappedFile>& file() const { return file_; }  // null after Parse

  // The record's bytes as they lie in the file.
  std::string_view Packed(const ZipRecord& record) const { return bytes_.substr(record.offset, record.packed); }
  // Reads the record and compares its CRC-32. kInput, naming the record.
  Status CheckCrc(const ZipRecord& record) const;
  // The unpacked bytes, CRC-checked.
  Result<std::string> Read(const ZipRecord& record) const;

 private:
  ZipDirectory() = default;

  std::shared_ptr<const MappedFile> file_;
  std::string_view bytes_;
  std::string path_;
  std::string root_;
  std::string digest_;
  std::vector<ZipRecord> records_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace autoep

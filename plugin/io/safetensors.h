// SPDX-License-Identifier: Apache-2.0
// The safetensors format: a strict reader with the rules of the reference implementation, and a writer whose bytes depend
// on the tensors alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugin/io/files.h"
#include "plugin/io/status.h"

namespace autoep {

// Bits of one element of a safetensors dtype ("F32" -> 32, "BF16" -> 16, "BOOL" -> 8, "F4" -> 4); nullopt if unknown.
std::optional<int64_t> SafetensorsDtypeBits(std::string_view dtype);

struct SafetensorsSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;  // all >= 0
  bool operator==(const SafetensorsSpec&) const = default;
};

struct SafetensorsTensor : SafetensorsSpec {
  const char* data = nullptr;  // in the mapping; may be unaligned
  uint64_t bytes = 0;
};

class SafetensorsFile {
 public:
  // kInput, one sentence: which rule the file breaks.
  static Result<SafetensorsFile> Open(const std::string& path);
  // `bytes` must outlive the result; `path` is for messages.
  static Result<SafetensorsFile> Parse(std::string_view bytes, const std::string& path);

  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // in the order of their data
  const SafetensorsTensor* Find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }  // keeps the data alive; null after Parse

 private:
  SafetensorsFile() = default;

  std::shared_ptr<const MappedFile> file_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

// Streams a file: the header on creation, then the data of tensors() in that order, each in one or more pieces.
class SafetensorsWriter {
 public:
  // Sorts the tensors as the reference writer does: widest dtype first, then by name. Fails (kBug) on a duplicate name,
  // an unknown dtype, or a size that overflows; else as the sink fails.
  static Result<SafetensorsWriter> Create(std::vector<SafetensorsSpec> tensors, const std::map<std::string, std::string>& metadata,
                                          ByteSink sink);

  const std::vector<SafetensorsSpec>& tensors() const { return tensors_; }
  uint64_t data_bytes() const { return data_bytes_; }
  Status Append(const void* data, size_t size);
  Status Finish();  // kBug unless exactly data_bytes() were appended

 private:
  SafetensorsWriter() = default;

  std::vector<SafetensorsSpec> tensors_;
  uint64_t data_bytes_ = 0;
  uint64_t appended_ = 0;
  ByteSink sink_;
};

}  // namespace autoep

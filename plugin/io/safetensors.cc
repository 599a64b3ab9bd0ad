// SPDX-License-Identifier: Apache-2.0
// The safetensors reader: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes without a gap.
#include "plugin/io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "plugin/io/checked.h"
#include "plugin/io/json.h"
#include "plugin/io/safetensors_format.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

struct Placed {
  SafetensorsTensor tensor;
  uint64_t begin = 0;
  uint64_t end = 0;
};

Result<std::string_view> HeaderText(std::string_view bytes, const std::string& path) {
  const auto fail = [&](std::string_view sentence) {
    return Status(Code::kInput, fmt::format("{}: {}", Printable(path), sentence));
  };
  if (bytes.size() < kSafetensorsPrefix) return fail("not a safetensors file: it has fewer than 8 bytes");
  const uint64_t size = LittleEndian64(bytes);
  if (size > kSafetensorsHeaderLimit) {
    return fail(
        fmt::format("not a safetensors file: its header would have {} bytes and may have {}", size, kSafetensorsHeaderLimit));
  }
  if (size > bytes.size() - kSafetensorsPrefix) {
    return fail(fmt::format("the file ends inside its header of {} bytes: it is truncated", size));
  }
  const std::string_view header = bytes.substr(kSafetensorsPrefix, size);
  if (!IsUtf8(header)) return fail("the header is not UTF-8");
  return header;
}

Result<Placed> ParseTensor(const std::string& name, const JsonValue& info) {
  AUTOEP_RETURN_IF_ERROR(info.CheckKeys({"dtype", "shape", "data_offsets"}));
  Placed placed;
  placed.tensor.name = name;
  AUTOEP_ASSIGN_OR_RETURN(placed.tensor.dtype, info.String("dtype"));
  if (!SafetensorsDtypeBits(placed.tensor.dtype)) {
    return info.Fail(fmt::format("unknown dtype '{}'", Printable(placed.tensor.dtype)));
  }
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue shape, info.At("shape"));
  AUTOEP_ASSIGN_OR_RETURN(placed.tensor.shape, shape.AsInts(0, INT64_MAX));
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue offsets_value, info.At("data_offsets"));
  AUTOEP_ASSIGN_OR_RETURN(const auto offsets, offsets_value.AsInts(0, INT64_MAX));
  if (offsets.size() != 2) return offsets_value.Fail(fmt::format("expected two numbers, found {}", offsets.size()));
  placed.begin = static_cast<uint64_t>(offsets[0]);
  placed.end = static_cast<uint64_t>(offsets[1]);
  if (placed.begin > placed.end) return offsets_value.Fail("the data ends before it begins");
  return placed;
}

// The data of all tensors, sorted, must fill the rest of the file: each begins where the one before it ends.
Status CheckData(std::vector<Placed>& tensors, std::string_view data, const std::string& path) {
  const auto fail = [&](const std::string& name, std::string_view sentence) {
    return Status(Code::kInput, fmt::format("{}: tensor '{}' {}", Printable(path), Printable(name), sentence));
  };
  std::sort(tensors.begin(), tensors.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  uint64_t end = 0;
  for (Placed& placed : tensors) {
    SafetensorsTensor& tensor = placed.tensor;
    if (placed.begin < end)
      return fail(tensor.name, fmt::format("overlaps the one before it: it begins at {}, not {}", placed.begin, end));
    if (placed.begin > end)
      return fail(tensor.name, fmt::format("leaves a hole before it: it begins at {}, not {}", placed.begin, end));
    const auto bits = SafetensorsBits(tensor);
    if (!bits) return fail(tensor.name, "has a shape whose size overflows");
    if (*bits % 8 != 0) return fail(tensor.name, "does not end on a whole byte");
    tensor.bytes = placed.end - placed.begin;
    if (*bits / 8 != tensor.bytes) {
      return fail(tensor.name, fmt::format("has {} bytes, and its dtype and shape need {}", tensor.bytes, *bits / 8));
    }
    if (placed.end > data.size()) return fail(tensor.name, "reaches beyond the end of the file: it is truncated");
    tensor.data = data.data() + placed.begin;
    end = placed.end;
  }
  if (end == data.size()) return Status();
  return Status(Code::kInput, fmt::format("{}: {} bytes follow the last tensor", Printable(path), data.size() - end));
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::Parse(std::string_view bytes, const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(const std::string_view header, HeaderText(bytes, path));
  JsonLimits limits;
  limits.depth = 3;
  AUTOEP_ASSIGN_OR_RETURN(const Json json, ParseJson(header, Printable(path) + ": header", Code::kInput, limits));
  AUTOEP_ASSIGN_OR_RETURN(const auto members, JsonValue(json, Printable(path) + ": header").AsObject());
  SafetensorsFile file;
  std::vector<Placed> tensors;
  for (const auto& [name, value] : members) {
    if (name == kSafetensorsMetadata) {
      AUTOEP_ASSIGN_OR_RETURN(file.metadata_, value.AsStringMap());
      continue;
    }
    AUTOEP_ASSIGN_OR_RETURN(Placed placed, ParseTensor(name, value));
    tensors.push_back(std::move(placed));
  }
  AUTOEP_RETURN_IF_ERROR(CheckData(tensors, bytes.substr(kSafetensorsPrefix + header.size()), path));
  for (Placed& placed : tensors) {
    file.index_.emplace(placed.tensor.name, file.tensors_.size());
    file.tensors_.push_back(std::move(placed.tensor));
  }
  return file;
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(auto mapped, MappedFile::Open(path));
  AUTOEP_ASSIGN_OR_RETURN(SafetensorsFile file, Parse(mapped->bytes(), path));
  file.file_ = std::move(mapped);
  return file;
}

const SafetensorsTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace autoep

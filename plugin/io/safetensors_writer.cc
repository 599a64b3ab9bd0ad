// SPDX-License-Identifier: Apache-2.0
// The safetensors writer. Its bytes equal those of the reference implementation for the same tensors.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "plugin/io/checked.h"
#include "plugin/io/json.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/safetensors_format.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

struct Dtype {
  std::string_view name;
  int64_t bits;
};

// In the reference's order, narrow to wide: files hold the tensors in the reverse of it.
constexpr std::array<Dtype, 22> kDtypes = {{{"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
                                            {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
                                            {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
                                            {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
                                            {"I64", 64},        {"U64", 64}}};

const Dtype* FindDtype(std::string_view name) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const Dtype& dtype) { return dtype.name == name; });
  return found == kDtypes.end() ? nullptr : &*found;
}

std::string Quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string HeaderJson(const std::vector<SafetensorsSpec>& tensors, const std::map<std::string, std::string>& metadata) {
  std::string out = "{";
  if (!metadata.empty()) {
    out += fmt::format("\"{}\":{{", kSafetensorsMetadata);
    for (const auto& [key, value] : metadata)
      out += fmt::format("{}{}:{}", out.back() == '{' ? "" : ",", Quoted(key), Quoted(value));
    out += "}";
  }
  uint64_t offset = 0;
  for (const SafetensorsSpec& tensor : tensors) {
    const uint64_t end = offset + *SafetensorsBits(tensor) / 8;
    out += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", out.size() == 1 ? "" : ",",
                       Quoted(tensor.name), tensor.dtype, fmt::join(tensor.shape, ","), offset, end);
    offset = end;
  }
  out += "}";
  // Padded so that the data begins at a multiple of 8 bytes.
  out.resize(*CheckedAlignUp<size_t>(out.size(), 8), ' ');
  return out;
}

Status CheckSpecs(const std::vector<SafetensorsSpec>& tensors, uint64_t* total) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto fail = [&](std::string_view sentence) {
      return Status(Code::kBug, fmt::format("safetensors writer: tensor '{}' {}", Printable(tensors[i].name), sentence));
    };
    if (tensors[i].name == kSafetensorsMetadata) return fail("has a reserved name");
    if (!IsUtf8(tensors[i].name)) return fail("has a name that is not UTF-8");
    if (!SafetensorsDtypeBits(tensors[i].dtype)) return fail("has an unknown dtype");
    const auto bits = SafetensorsBits(tensors[i]);
    const auto sum = bits ? CheckedAdd<uint64_t>(*total, *bits / 8) : std::nullopt;
    if (!sum || *bits % 8 != 0) return fail("has a shape whose size overflows or is no whole number of bytes");
    *total = *sum;
  }
  std::vector<std::string_view> names;
  for (const SafetensorsSpec& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return Status();
  return Status(Code::kBug, fmt::format("safetensors writer: tensor '{}' occurs twice", Printable(*twice)));
}

}  // namespace

std::optional<int64_t> SafetensorsDtypeBits(std::string_view dtype) {
  const Dtype* found = FindDtype(dtype);
  return found == nullptr ? std::nullopt : std::optional<int64_t>(found->bits);
}

std::optional<uint64_t> SafetensorsBits(const SafetensorsSpec& spec) {
  const auto element = SafetensorsDtypeBits(spec.dtype);
  const auto count = CheckedProduct<int64_t>(std::span<const int64_t>(spec.shape));
  if (!element || !count) return std::nullopt;
  return CheckedMul<uint64_t>(static_cast<uint64_t>(*count), static_cast<uint64_t>(*element));
}

Result<SafetensorsWriter> SafetensorsWriter::Create(std::vector<SafetensorsSpec> tensors,
                                                    const std::map<std::string, std::string>& metadata, ByteSink sink) {
  SafetensorsWriter writer;
  AUTOEP_RETURN_IF_ERROR(CheckSpecs(tensors, &writer.data_bytes_));
  std::sort(tensors.begin(), tensors.end(), [](const SafetensorsSpec& a, const SafetensorsSpec& b) {
    const Dtype* left = FindDtype(a.dtype);
    const Dtype* right = FindDtype(b.dtype);
    return left != right ? left > right : a.name < b.name;
  });
  const std::string header = HeaderJson(tensors, metadata);
  if (header.size() > kSafetensorsHeaderLimit) return Status(Code::kBug, "safetensors writer: the header is too large");
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  writer.tensors_ = std::move(tensors);
  writer.sink_ = std::move(sink);
  AUTOEP_RETURN_IF_ERROR(writer.sink_(prefix.data(), prefix.size()));
  AUTOEP_RETURN_IF_ERROR(writer.sink_(header.data(), header.size()));
  return writer;
}

Status SafetensorsWriter::Append(const void* data, size_t size) {
  if (size > data_bytes_ - appended_) {
    return Status(Code::kBug, fmt::format("safetensors writer: more than the {} bytes of its tensors were given", data_bytes_));
  }
  appended_ += size;
  return size == 0 ? Status() : sink_(data, size);
}

Status SafetensorsWriter::Finish() {
  if (appended_ == data_bytes_) return Status();
  return Status(Code::kBug, fmt::format("safetensors writer: {} of {} bytes were given", appended_, data_bytes_));
}

}  // namespace autoep

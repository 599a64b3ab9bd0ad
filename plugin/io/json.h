// SPDX-License-Identifier: Apache-2.0
// Strict JSON over nlohmann-json, which by itself keeps the last of two equal keys and turns -1 into 2^64-1. A JsonValue
// knows where it stands ("autoep.json: layers[2].top_k"), so that every failure names the place.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

using Json = nlohmann::json;

struct JsonLimits {
  size_t bytes = 256u << 20;
  int depth = 32;
};

// RFC 8259 text, UTF-8, one value and nothing after it. Duplicate keys, numbers that no double or 64-bit integer holds and
// anything beyond the limits fail with `code`; messages begin with `where`.
Result<Json> ParseJson(std::string_view text, const std::string& where, Code code = Code::kInput, JsonLimits limits = {});

// Sorted keys, two spaces, a newline at the end. Bytes that are not UTF-8 become U+FFFD.
std::string DumpJson(const Json& value);

// A value inside a parsed document and its place. Refers to the document, which must outlive it.
class JsonValue {
 public:
  JsonValue(const Json& value, std::string where, Code code = Code::kInput);

  const Json& json() const { return *value_; }
  const std::string& where() const { return where_; }
  Status Fail(std::string_view sentence) const;

  // This value, of the type asked for. Int takes whole numbers written without fraction or exponent.
  Result<std::string> AsString() const;
  Result<int64_t> AsInt(int64_t min, int64_t max) const;
  Result<double> AsNumber() const;
  Result<bool> AsBool() const;
  Result<std::vector<JsonValue>> AsArray() const;
  Result<std::vector<std::pair<std::string, JsonValue>>> AsObject() const;  // sorted by key
  Result<std::vector<int64_t>> AsInts(int64_t min, int64_t max) const;
  Result<std::vector<double>> AsNumbers() const;
  Result<std::vector<std::string>> AsStrings() const;
  Result<std::map<std::string, std::string>> AsStringMap() const;

  // A member of this object.
  bool Has(std::string_view key) const;
  Result<JsonValue> At(std::string_view key) const;
  // Exactly these keys, all of them.
  Status CheckKeys(const std::vector<std::string>& keys) const;

  Result<std::string> String(std::string_view key) const;
  Result<int64_t> Int(std::string_view key, int64_t min, int64_t max) const;
  Result<double> Number(std::string_view key) const;
  Result<bool> Bool(std::string_view key) const;
  Result<std::vector<JsonValue>> Array(std::string_view key) const;

 private:
  const Json* value_;
  std::string where_;
  Code code_;
};

}  // namespace autoep

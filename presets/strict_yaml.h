// SPDX-License-Identifier: Apache-2.0
// Strict YAML over yaml-cpp, which by itself keeps duplicate keys, reads 012 as ten and `yes` as true, and reports a missing
// key without a place. Every failure is kUsage and begins with "FILE:LINE:COL: ".
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugin/io/json.h"
#include "plugin/io/status.h"

namespace autoep {

struct YamlNode;

// A value and where it stands. Copies share the document.
class YamlValue {
 public:
  // One document of at most 1 MiB and 16 levels; duplicate keys, anchors, aliases and tags are refused.
  static Result<YamlValue> Parse(std::string_view text, const std::string& file);
  static Result<YamlValue> Load(const std::string& path);

  // A failure that begins with this value's place.
  Status Fail(std::string_view sentence) const;

  // This value, of the type asked for. Whole numbers are decimal without a leading zero; booleans are true and false.
  Result<std::string> AsString() const;
  Result<int64_t> AsInt(int64_t min, int64_t max) const;
  Result<double> AsNumber() const;
  Result<bool> AsBool() const;
  Result<std::vector<YamlValue>> AsList() const;
  Result<std::vector<std::string>> AsStrings() const;
  Result<std::vector<std::pair<std::string, YamlValue>>> AsMap() const;  // in the file's order
  Result<Json> AsJson() const;  // unquoted true, false, null and numbers become such; all else strings

  bool IsString() const;
  bool IsMap() const;
  bool IsNull() const;  // nothing, or an unquoted null or ~

  // Members of this map. Has is false where this is no map.
  bool Has(std::string_view key) const;
  Result<YamlValue> At(std::string_view key) const;
  // Fails on a key that is not in `keys`, with a suggestion, at the key's place.
  Status CheckKeys(const std::vector<std::string>& keys) const;

  Result<std::string> String(std::string_view key) const;
  Result<std::string> StringOr(std::string_view key, std::string_view fallback) const;
  Result<int64_t> Int(std::string_view key, int64_t min, int64_t max) const;
  Result<bool> Bool(std::string_view key) const;
  Result<std::vector<std::string>> StringsOr(std::string_view key, const std::vector<std::string>& fallback) const;

 private:
  YamlValue(std::shared_ptr<const YamlNode> node, std::shared_ptr<const std::string> file);
  YamlValue Wrap(const YamlNode& node) const;
  Status FailAt(const YamlNode& node, std::string_view sentence) const;
  Status Expected(std::string_view what) const;

  std::shared_ptr<const YamlNode> node_;  // shares ownership of the whole document
  std::shared_ptr<const std::string> file_;
};

}  // namespace autoep

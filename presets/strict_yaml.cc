// SPDX-License-Identifier: Apache-2.0
// Typed access to a strict YAML document.
#include "presets/strict_yaml.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "plugin/io/files.h"
#include "plugin/io/text.h"
#include "presets/yaml_node.h"

namespace autoep {
namespace {

// Decimal, no sign but '-', no leading zero.
std::optional<int64_t> ParseInt(std::string_view text) {
  const std::string_view digits = text.substr(text.starts_with('-') ? 1 : 0);
  if (digits.empty() || (digits.size() > 1 && digits[0] == '0')) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional<int64_t>(value) : std::nullopt;
}

std::optional<double> ParseNumber(std::string_view text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || std::string_view("+-.eE").find(c) != std::string_view::npos;
  });
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = plain && error == std::errc() && end == text.data() + text.size();
  return whole && std::isfinite(value) ? std::optional<double>(value) : std::nullopt;
}

bool IsDigits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Words that some YAML reader takes for something else than a string.
bool IsAmbiguous(const std::string& text) {
  static constexpr std::array<std::string_view, 10> kWords = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "~"};
  std::string lower = text;
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return std::find(kWords.begin(), kWords.end(), lower) != kWords.end() || ParseNumber(text).has_value() || IsDigits(text);
}

std::string Describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
    case YamlNode::Kind::kScalar:
      break;
  }
  return fmt::format("{}'{}'", node.quoted ? "the string " : "", Printable(node.text));
}

bool IsPlain(const YamlNode& node) { return node.kind == YamlNode::Kind::kScalar && !node.quoted; }

}  // namespace

YamlValue::YamlValue(std::shared_ptr<const YamlNode> node, std::shared_ptr<const std::string> file)
    : node_(std::move(node)), file_(std::move(file)) {}

YamlValue YamlValue::Wrap(const YamlNode& node) const { return YamlValue(std::shared_ptr<const YamlNode>(node_, &node), file_); }

Result<YamlValue> YamlValue::Parse(std::string_view text, const std::string& file) {
  AUTOEP_ASSIGN_OR_RETURN(auto node, ParseYamlNode(text, file));
  return YamlValue(std::move(node), std::make_shared<const std::string>(file));
}

Result<YamlValue> YamlValue::Load(const std::string& path) {
  const auto text = ReadTextFile(path, 1 << 20);
  if (!text.ok()) return Status(Code::kUsage, text.status().message());
  return Parse(*text, path);
}

Status YamlValue::FailAt(const YamlNode& node, std::string_view sentence) const {
  return Status(Code::kUsage, fmt::format("{}:{}:{}: {}", Printable(*file_), node.line, node.column, sentence));
}

Status YamlValue::Fail(std::string_view sentence) const { return FailAt(*node_, sentence); }

Status YamlValue::Expected(std::string_view what) const {
  return Fail(fmt::format("expected {}, found {}", what, Describe(*node_)));
}

bool YamlValue::IsString() const { return node_->kind == YamlNode::Kind::kScalar && (node_->quoted || !IsAmbiguous(node_->text)); }

bool YamlValue::IsNull() const {
  return node_->kind == YamlNode::Kind::kNull || (IsPlain(*node_) && (node_->text == "null" || node_->text == "~"));
}

bool YamlValue::IsMap() const { return node_->kind == YamlNode::Kind::kMap; }

Result<std::string> YamlValue::AsString() const {
  if (IsString()) return node_->text;
  return Expected(IsPlain(*node_) ? "a string (put it in quotes)" : "a string");
}

Result<int64_t> YamlValue::AsInt(int64_t min, int64_t max) const {
  if (!IsPlain(*node_)) return Expected("a whole number");
  const auto value = ParseInt(node_->text);
  if (!value && node_->text.size() > 1 && node_->text[0] == '0' && IsDigits(node_->text)) {
    return Expected("a whole number without leading zeros");
  }
  if (!value) return Expected("a whole number");
  if (*value >= min && *value <= max) return *value;
  return Expected(max == INT64_MAX ? fmt::format("a whole number, {} or more", min)
                                   : fmt::format("a whole number, {} to {}", min, max));
}

Result<double> YamlValue::AsNumber() const {
  const auto value = IsPlain(*node_) ? ParseNumber(node_->text) : std::nullopt;
  if (!value) return Expected("a number");
  return *value;
}

Result<bool> YamlValue::AsBool() const {
  if (!IsPlain(*node_) || (node_->text != "true" && node_->text != "false")) return Expected("true or false");
  return node_->text == "true";
}

Result<std::vector<YamlValue>> YamlValue::AsList() const {
  if (node_->kind != YamlNode::Kind::kList) return Expected("a list");
  std::vector<YamlValue> out;
  for (const YamlNode& child : node_->children) out.push_back(Wrap(child));
  return out;
}

Result<std::vector<std::string>> YamlValue::AsStrings() const {
  AUTOEP_ASSIGN_OR_RETURN(const auto elements, AsList());
  std::vector<std::string> out;
  for (const YamlValue& element : elements) {
    AUTOEP_ASSIGN_OR_RETURN(std::string text, element.AsString());
    out.push_back(std::move(text));
  }
  return out;
}

Result<std::vector<std::pair<std::string, YamlValue>>> YamlValue::AsMap() const {
  if (!IsMap()) return Expected("a map");
  std::vector<std::pair<std::string, YamlValue>> out;
  for (size_t i = 0; i < node_->keys.size(); ++i) out.emplace_back(node_->keys[i].text, Wrap(node_->children[i]));
  return out;
}

Result<Json> YamlValue::AsJson() const {
  if (node_->kind == YamlNode::Kind::kNull) return Json(nullptr);
  if (node_->kind == YamlNode::Kind::kList) {
    AUTOEP_ASSIGN_OR_RETURN(const auto elements, AsList());
    Json out = Json::array();
    for (const YamlValue& element : elements) {
      AUTOEP_ASSIGN_OR_RETURN(Json converted, element.AsJson());
      out.push_back(std::move(converted));
    }
    return out;
  }
  if (IsMap()) {
    AUTOEP_ASSIGN_OR_RETURN(const auto members, AsMap());
    Json out = Json::object();
    for (const auto& [key, member] : members) {
      AUTOEP_ASSIGN_OR_RETURN(out[key], member.AsJson());
    }
    return out;
  }
  if (IsString()) return Json(node_->text);
  if (const auto boolean = AsBool(); boolean.ok()) return Json(*boolean);
  if (const auto integer = ParseInt(node_->text)) return Json(*integer);
  if (IsDigits(node_->text)) return AsInt(INT64_MIN, INT64_MAX).status();
  const auto number = AsNumber();
  if (!number.ok()) return Expected("true, false, a number, or a string (put it in quotes)");
  return Json(*number);
}

bool YamlValue::Has(std::string_view key) const {
  return std::any_of(node_->keys.begin(), node_->keys.end(), [&](const YamlNode& node) { return node.text == key; });
}

Result<YamlValue> YamlValue::At(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const auto members, AsMap());
  for (const auto& [name, member] : members) {
    if (name == key) return member;
  }
  return Fail(fmt::format("the key '{}' is missing", key));
}

Status YamlValue::CheckKeys(const std::vector<std::string>& keys) const {
  if (!IsMap()) return Expected("a map");
  for (const YamlNode& key : node_->keys) {
    if (std::find(keys.begin(), keys.end(), key.text) != keys.end()) continue;
    return FailAt(key, fmt::format("unknown key '{}'{}", Printable(key.text), DidYouMean(key.text, keys)));
  }
  return Status();
}

Result<std::string> YamlValue::String(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue member, At(key));
  return member.AsString();
}

Result<std::string> YamlValue::StringOr(std::string_view key, std::string_view fallback) const {
  return Has(key) ? String(key) : std::string(fallback);
}

Result<int64_t> YamlValue::Int(std::string_view key, int64_t min, int64_t max) const {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue member, At(key));
  return member.AsInt(min, max);
}

Result<bool> YamlValue::Bool(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue member, At(key));
  return member.AsBool();
}

Result<std::vector<std::string>> YamlValue::StringsOr(std::string_view key, const std::vector<std::string>& fallback) const {
  if (!Has(key)) return fallback;
  AUTOEP_ASSIGN_OR_RETURN(const YamlValue member, At(key));
  return member.AsStrings();
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// JsonValue: typed access with sentences that name the place.
#include "plugin/io/json.h"

#include <fmt/format.h>

#include <algorithm>

#include "plugin/io/text.h"

namespace autoep {
namespace {

std::string Describe(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_string()) return fmt::format("the string \"{}\"", Printable(value.get_ref<const std::string&>()));
  return value.dump();
}

std::string Child(const std::string& where, std::string_view key) {
  const bool at_root = where.find(": ") == std::string::npos;
  return fmt::format("{}{}{}", where, at_root ? ": " : ".", Printable(key));
}

// Every element of a list through `convert`.
template <typename T, typename Convert>
Result<std::vector<T>> Each(const JsonValue& value, Convert convert) {
  AUTOEP_ASSIGN_OR_RETURN(const auto elements, value.AsArray());
  std::vector<T> out;
  out.reserve(elements.size());
  for (const JsonValue& element : elements) {
    AUTOEP_ASSIGN_OR_RETURN(T converted, convert(element));
    out.push_back(std::move(converted));
  }
  return out;
}

}  // namespace

JsonValue::JsonValue(const Json& value, std::string where, Code code) : value_(&value), where_(std::move(where)), code_(code) {}

Status JsonValue::Fail(std::string_view sentence) const { return Status(code_, fmt::format("{}: {}", where_, sentence)); }

Result<std::string> JsonValue::AsString() const {
  if (!value_->is_string()) return Fail(fmt::format("expected a string, found {}", Describe(*value_)));
  return value_->get<std::string>();
}

Result<int64_t> JsonValue::AsInt(int64_t min, int64_t max) const {
  if (!value_->is_number_integer()) return Fail(fmt::format("expected a whole number, found {}", Describe(*value_)));
  const bool too_large = value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : value_->get<int64_t>();
  if (too_large || number < min || number > max) {
    const std::string range = max == INT64_MAX ? fmt::format("{} or more", min) : fmt::format("{} to {}", min, max);
    return Fail(fmt::format("expected a whole number, {}, found {}", range, value_->dump()));
  }
  return number;
}

Result<double> JsonValue::AsNumber() const {
  if (!value_->is_number()) return Fail(fmt::format("expected a number, found {}", Describe(*value_)));
  return value_->get<double>();
}

Result<bool> JsonValue::AsBool() const {
  if (!value_->is_boolean()) return Fail(fmt::format("expected true or false, found {}", Describe(*value_)));
  return value_->get<bool>();
}

Result<std::vector<JsonValue>> JsonValue::AsArray() const {
  if (!value_->is_array()) return Fail(fmt::format("expected a list, found {}", Describe(*value_)));
  std::vector<JsonValue> out;
  out.reserve(value_->size());
  for (const Json& element : *value_) out.emplace_back(element, fmt::format("{}[{}]", where_, out.size()), code_);
  return out;
}

Result<std::vector<std::pair<std::string, JsonValue>>> JsonValue::AsObject() const {
  if (!value_->is_object()) return Fail(fmt::format("expected an object, found {}", Describe(*value_)));
  std::vector<std::pair<std::string, JsonValue>> out;
  for (const auto& [key, member] : value_->items()) out.emplace_back(key, JsonValue(member, Child(where_, key), code_));
  return out;
}

Result<std::vector<int64_t>> JsonValue::AsInts(int64_t min, int64_t max) const {
  return Each<int64_t>(*this, [&](const JsonValue& element) { return element.AsInt(min, max); });
}

Result<std::vector<double>> JsonValue::AsNumbers() const {
  return Each<double>(*this, [](const JsonValue& element) { return element.AsNumber(); });
}

Result<std::vector<std::string>> JsonValue::AsStrings() const {
  return Each<std::string>(*this, [](const JsonValue& element) { return element.AsString(); });
}

Result<std::map<std::string, std::string>> JsonValue::AsStringMap() const {
  AUTOEP_ASSIGN_OR_RETURN(const auto members, AsObject());
  std::map<std::string, std::string> out;
  for (const auto& [key, member] : members) {
    AUTOEP_ASSIGN_OR_RETURN(out[key], member.AsString());
  }
  return out;
}

bool JsonValue::Has(std::string_view key) const { return value_->is_object() && value_->contains(std::string(key)); }

Result<JsonValue> JsonValue::At(std::string_view key) const {
  if (!value_->is_object()) return Fail(fmt::format("expected an object, found {}", Describe(*value_)));
  const auto found = value_->find(std::string(key));
  if (found == value_->end()) return Fail(fmt::format("the key '{}' is missing", key));
  return JsonValue(*found, Child(where_, key), code_);
}

Status JsonValue::CheckKeys(const std::vector<std::string>& keys) const {
  AUTOEP_ASSIGN_OR_RETURN(const auto members, AsObject());
  for (const auto& [key, member] : members) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    return Fail(fmt::format("unknown key '{}'{}", Printable(key), DidYouMean(key, keys)));
  }
  for (const std::string& key : keys) {
    if (!Has(key)) return Fail(fmt::format("the key '{}' is missing", key));
  }
  return Status();
}

Result<std::string> JsonValue::String(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue member, At(key));
  return member.AsString();
}

Result<int64_t> JsonValue::Int(std::string_view key, int64_t min, int64_t max) const {
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue member, At(key));
  return member.AsInt(min, max);
}

Result<double> JsonValue::Number(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue member, At(key));
  return member.AsNumber();
}

Result<bool> JsonValue::Bool(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue member, At(key));
  return member.AsBool();
}

Result<std::vector<JsonValue>> JsonValue::Array(std::string_view key) const {
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue member, At(key));
  return member.AsArray();
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// The strict parser: nlohmann-json's own lexer and grammar, with a builder that refuses what it lets pass.
#include <fmt/format.h>

#include <algorithm>

#include "plugin/io/json.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

// Builds the document from parse events. The first complaint stops the parse.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(int max_depth) : max_depth_(max_depth) {}

  Json& root() { return root_; }
  const std::string& complaint() const { return complaint_; }
  size_t position() const { return position_; }  // of a syntax error, else npos

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(int64_t value) override { return Add(value); }
  bool number_unsigned(uint64_t value) override { return Add(value); }
  bool number_float(double value, const std::string& text) override {
    // The lexer falls back to a double, and loses digits, for whole numbers that 64 bits cannot hold.
    if (text.find_first_of(".eE") == std::string::npos) return Complain(fmt::format("the number {} is too large", Printable(text)));
    return Add(value);
  }
  bool string(std::string& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Complain("binary data"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(std::string& value) override {
    Json& object = *open_.back();
    if (object.contains(value)) return Complain(fmt::format("the key '{}' occurs twice{}", Printable(value), Place()));
    keys_.back() = value;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    position_ = position;
    std::string_view what = error.what();
    if (error.id == 406) return Complain("a number is too large for a double");
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while parsing ...": keep the end.
    const size_t colon = what.find(": ");
    return Complain(Printable(colon == std::string_view::npos ? what : what.substr(colon + 2)));
  }

 private:
  bool Complain(std::string sentence) {
    complaint_ = std::move(sentence);
    return false;
  }

  std::string Place() const {
    std::string path;
    for (size_t i = 0; i + 1 < open_.size(); ++i) {
      path +=
          open_[i]->is_array() ? fmt::format("[{}]", open_[i]->size() - 1) : fmt::format("{}{}", path.empty() ? "" : ".", keys_[i]);
    }
    return path.empty() ? "" : fmt::format(" in {}", Printable(path));
  }

  template <typename T>
  Json* Put(T&& value) {
    if (open_.empty()) {
      root_ = std::forward<T>(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) return &parent.emplace_back(std::forward<T>(value));
    return &(parent[keys_.back()] = std::forward<T>(value));
  }

  template <typename T>
  bool Add(T&& value) {
    Put(std::forward<T>(value));
    return true;
  }

  bool Open(Json&& container) {
    if (static_cast<int>(open_.size()) >= max_depth_)
      return Complain(fmt::format("values are nested deeper than {} levels", max_depth_));
    open_.push_back(Put(std::move(container)));
    keys_.emplace_back();
    return true;
  }

  bool Close() {
    open_.pop_back();
    keys_.pop_back();
    return true;
  }

  int max_depth_;
  Json root_;
  std::vector<Json*> open_;
  std::vector<std::string> keys_;
  std::string complaint_;
  size_t position_ = std::string::npos;
};

std::string LineAndColumn(std::string_view text, size_t position) {
  const std::string_view before = text.substr(0, std::min(position == 0 ? 0 : position - 1, text.size()));
  const size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return fmt::format("{}:{}", std::count(before.begin(), before.end(), '\n') + 1, before.size() - line_start + 1);
}

}  // namespace

Result<Json> ParseJson(std::string_view text, const std::string& where, Code code, JsonLimits limits) {
  const auto fail = [&](std::string_view sentence) { return Status(code, fmt::format("{}: {}", where, sentence)); };
  if (text.size() > limits.bytes) {
    return fail(fmt::format("the JSON has {} and may have {}", HumanBytes(text.size()), HumanBytes(limits.bytes)));
  }
  // The lexer takes a zero byte for the end of the text and skips a byte-order mark.
  if (text.find('\0') != std::string_view::npos) return fail("the JSON has a zero byte");
  if (text.starts_with("\xEF\xBB\xBF")) return fail("the JSON begins with a byte-order mark; save it as plain UTF-8");
  Builder builder(limits.depth);
  if (Json::sax_parse(text, &builder)) return std::move(builder.root());
  const size_t position = builder.position();
  if (position == std::string::npos) return fail(builder.complaint());
  return Status(code, fmt::format("{}:{}: not valid JSON: {}", where, LineAndColumn(text, position), builder.complaint()));
}

std::string DumpJson(const Json& value) { return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace autoep

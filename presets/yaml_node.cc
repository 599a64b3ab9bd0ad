// SPDX-License-Identifier: Apache-2.0
// Builds the tree from yaml-cpp's parse events; refuses what makes YAML mean something else than it says.
#include "presets/yaml_node.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>

#include "plugin/io/text.h"

namespace autoep {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr size_t kMaxDepth = 16;

struct Refused {
  YAML::Mark mark;
  std::string sentence;
};

// yaml-cpp reports by exceptions; this one stays inside ParseYamlNode.
class Builder : public YAML::EventHandler {
 public:
  YamlNode root;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { Add(mark, "", anchor, YamlNode::Kind::kNull); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused{mark, "aliases are not allowed; write the value out"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, const std::string& value) override {
    YamlNode* node = Add(mark, tag, anchor, YamlNode::Kind::kScalar);
    node->text = value;
    node->quoted = tag == "!";
    const bool is_key = !open_.empty() && !open_.back()->keys.empty() && &open_.back()->keys.back() == node;
    if (is_key) CheckKey(mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    open_.push_back(Add(mark, tag, anchor, YamlNode::Kind::kList));
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YAML::EmitterStyle::value) override {
    open_.push_back(Add(mark, tag, anchor, YamlNode::Kind::kMap));
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  // Places a node in the open map or list.
  YamlNode* Add(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    if (anchor != 0) throw Refused{mark, "anchors are not allowed; write the value out"};
    if (!tag.empty() && tag != "?" && tag != "!") throw Refused{mark, fmt::format("the tag '{}' is not allowed", Printable(tag))};
    if (open_.size() >= kMaxDepth) throw Refused{mark, fmt::format("values are nested deeper than {} levels", kMaxDepth)};
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    if (open_.empty()) {
      root = std::move(node);
      return &root;
    }
    YamlNode& parent = *open_.back();
    const bool is_key = parent.kind == YamlNode::Kind::kMap && parent.keys.size() == parent.children.size();
    if (is_key && kind != YamlNode::Kind::kScalar) throw Refused{mark, "a key must be a plain word"};
    std::vector<YamlNode>& place = is_key ? parent.keys : parent.children;
    return &place.emplace_back(std::move(node));
  }

  void CheckKey(const YAML::Mark& mark) {
    const std::vector<YamlNode>& keys = open_.back()->keys;
    const std::string& text = keys.back().text;
    const auto first = std::find_if(keys.begin(), keys.end(), [&](const YamlNode& key) { return key.text == text; });
    if (&*first == &keys.back()) return;
    throw Refused{mark, fmt::format("the key '{}' occurs twice (first in line {})", Printable(text), first->line)};
  }

  std::vector<YamlNode*> open_;
};

}  // namespace

Result<std::shared_ptr<const YamlNode>> ParseYamlNode(std::string_view text, const std::string& file) {
  const auto fail = [&](const YAML::Mark& mark, std::string_view sentence) {
    const int line = std::max(mark.line, 0) + 1;
    const int column = std::max(mark.column, 0) + 1;
    return Status(Code::kUsage, fmt::format("{}:{}:{}: {}", Printable(file), line, column, sentence));
  };
  if (text.size() > kMaxBytes) return fail(YAML::Mark(), fmt::format("the file is larger than {}", HumanBytes(kMaxBytes)));
  if (!IsUtf8(text)) return fail(YAML::Mark(), "the file is not UTF-8");
  Builder builder;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return fail(YAML::Mark(), "the file holds no value");
    Builder second;
    if (parser.HandleNextDocument(second)) {
      return Status(Code::kUsage, fmt::format("{}:{}:{}: a second document; only one is allowed", Printable(file), second.root.line,
                                              second.root.column));
    }
  } catch (const Refused& refused) {
    return fail(refused.mark, refused.sentence);
  } catch (const YAML::Exception& error) {
    return fail(error.mark, fmt::format("not valid YAML: {}", Printable(error.msg)));
  } catch (const std::exception& error) {
    return fail(YAML::Mark(), fmt::format("not valid YAML: {}", Printable(error.what())));
  }
  return std::make_shared<const YamlNode>(std::move(builder.root));
}

}  // namespace autoep

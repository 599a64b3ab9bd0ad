// SPDX-License-Identifier: Apache-2.0
// The tree that strict_yaml.cc reads: yaml-cpp's events with their places, checked as they come.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;     // of a scalar
  bool quoted = false;  // or a block scalar: a string whatever it looks like
  int line = 1;
  int column = 1;
  std::vector<YamlNode> keys;      // of a map; all scalars, distinct
  std::vector<YamlNode> children;  // values of a map, elements of a list
};

// One document. kUsage: "FILE:LINE:COL: ...".
Result<std::shared_ptr<const YamlNode>> ParseYamlNode(std::string_view text, const std::string& file);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// A plain text table: a header, rows, columns as wide as their widest cell.
#pragma once

#include <string>
#include <vector>

#include "tools/console.h"

namespace autoep {

enum class Align { kLeft, kRight };

class Table {
 public:
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // One cell a column. Cells are escaped, so that names from a file cannot reach the terminal raw.
  void AddRow(std::vector<std::string> cells);

  // Ends with a newline; `indent` spaces before each line.
  std::string Render(const Console& console, int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Table layout.
#include "tools/table.h"

#include <algorithm>

#include "plugin/io/text.h"

namespace autoep {
namespace {

// Code points, which is the width of the text that names are made of.
size_t Width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string Padded(const std::string& text, size_t width, Align align) {
  const std::string fill(width - std::min(width, Width(text)), ' ');
  return align == Align::kRight ? fill + text : text + fill;
}

}  // namespace

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (std::string& cell : cells) cell = Printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::Render(const Console& console, int indent) const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    size_t width = Width(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, Width(row[c]));
    widths.push_back(width);
  }
  const auto line = [&](const auto& cell_of, bool header) {
    std::string text(indent, ' ');
    for (size_t c = 0; c < columns_.size(); ++c) {
      const std::string cell = Padded(cell_of(c), widths[c], columns_[c].align);
      text += (c ? "  " : "") + cell;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return (header ? console.Paint(Style::kBold, text) : text) + "\n";
  };
  std::string text = line([&](size_t c) { return columns_[c].title; }, true);
  for (const auto& row : rows_) text += line([&](size_t c) { return row[c]; }, false);
  return text;
}

}  // namespace autoep

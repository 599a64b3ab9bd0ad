// SPDX-License-Identifier: Apache-2.0
// Streams and colour.
#include "tools/console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace autoep {
namespace {

std::string_view Env(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool WantsColor(When when, std::FILE* stream) {
  if (when != When::kAuto) return when == When::kAlways;
  if (!Env("NO_COLOR").empty()) return false;
  if (!Env("CLICOLOR_FORCE").empty() && Env("CLICOLOR_FORCE") != "0") return true;
  return isatty(fileno(stream)) && Env("TERM") != "dumb" && !Env("TERM").empty();
}

const char* Sequence(Style style) {
  switch (style) {
    case Style::kPlain: return "";
    case Style::kBold: return "\033[1m";
    case Style::kDim: return "\033[2m";
    case Style::kRed: return "\033[31m";
    case Style::kGreen: return "\033[32m";
    case Style::kYellow: return "\033[33m";
  }
  return "";
}

std::string Painted(bool color, Style style, std::string_view text) {
  if (!color || style == Style::kPlain) return std::string(text);
  return fmt::format("{}{}\033[0m", Sequence(style), text);
}

std::string OneLine(std::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return line;
}

}  // namespace

Console::Console(std::FILE* out, std::FILE* err) : out_(out), err_(err) { SetColor(When::kAuto); }

void Console::SetColor(When when) {
  color_out_ = WantsColor(when, out_);
  color_err_ = WantsColor(when, err_);
}

void Console::Print(std::string_view text) {
  printed_ = true;
  std::fwrite(text.data(), 1, text.size(), out_);
}

void Console::Note(std::string_view text) {
  if (!quiet_) fmt::print(err_, "{}\n", text);
}

void Console::Warning(std::string_view text) {
  fmt::print(err_, "{} {}\n", Painted(color_err_, Style::kYellow, "warning:"), OneLine(text));
}

void Console::Error(std::string_view sentence) {
  std::fflush(out_);
  fmt::print(err_, "{} {}\n", Painted(color_err_, Style::kRed, "error:"), OneLine(sentence));
}

std::string Console::Paint(Style style, std::string_view text) const { return Painted(color_out_, style, text); }

bool Console::err_is_terminal() const { return isatty(fileno(err_)) && Env("TERM") != "dumb"; }

Status Console::Finish() {
  errno = 0;
  if (std::fflush(out_) == 0 && !std::ferror(out_)) return Status();
  return Status(Code::kOutput, fmt::format("standard output could not be written: {}", std::strerror(errno ? errno : EIO)));
}

std::string Plural(int64_t count, std::string_view noun) {
  const char* ending = count == 1 ? "" : noun.ends_with('s') ? "es" : "s";
  return fmt::format("{} {}{}", count, noun, ending);
}

}  // namespace autoep

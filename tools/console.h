// SPDX-License-Identifier: Apache-2.0
// The terminal: data on stdout, text for people on stderr, colour only where it is wanted.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "plugin/io/status.h"

namespace autoep {

enum class When { kAuto, kAlways, kNever };

enum class Style { kPlain, kBold, kDim, kRed, kGreen, kYellow };

class Console {
 public:
  Console() : Console(stdout, stderr) {}
  Console(std::FILE* out, std::FILE* err);

  // --color. kAuto follows NO_COLOR, CLICOLOR_FORCE and TERM=dumb, and asks for a terminal.
  void SetColor(When when);
  void SetQuiet(bool quiet) { quiet_ = quiet; }

  // Data, as it is, on stdout. Names in it have been through Printable (plugin/io/text.h).
  void Print(std::string_view text);
  // A line for people on stderr; nothing when quiet.
  void Note(std::string_view text);
  void Warning(std::string_view text);
  // "error: <sentence>", on one line whatever is in it.
  void Error(std::string_view sentence);

  // `text` in `style` for stdout, or as it is where stdout has no colour.
  std::string Paint(Style style, std::string_view text) const;

  bool quiet() const { return quiet_; }
  bool printed() const { return printed_; }  // any data on stdout
  std::FILE* err() const { return err_; }
  bool err_is_terminal() const;

  // Flushes stdout. Fails (kOutput) if anything written to it was lost.
  Status Finish();

 private:
  std::FILE* out_;
  std::FILE* err_;
  bool quiet_ = false;
  bool printed_ = false;
  bool color_out_ = false;
  bool color_err_ = false;
};

// "1 layer", "2 layers", "2 passes".
std::string Plural(int64_t count, std::string_view noun);

}  // namespace autoep

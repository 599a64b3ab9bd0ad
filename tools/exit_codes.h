// SPDX-License-Identifier: Apache-2.0
// What each exit code of the command line means. The values are Code of plugin/io/status.h; nothing else escapes.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "plugin/io/status.h"

namespace autoep {

struct ExitCode {
  Code code;
  std::string_view meaning;
};

// All codes, ascending.
std::span<const ExitCode> ExitCodes();

// The table as `autoep --help` prints it.
std::string ExitCodeHelp();

}  // namespace autoep

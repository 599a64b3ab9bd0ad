// SPDX-License-Identifier: Apache-2.0
// Checks the words of a command line before CLI11 parses them, which reports a misspelt option as a surplus positional.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "plugin/io/status.h"

namespace autoep {

// `words` without the program's name. Fails (kUsage), with a suggestion, on an option or subcommand that `app` does not know.
Status CheckWords(const CLI::App& app, const std::vector<std::string>& words);

// Fails (kUsage), with a suggestion, unless `value` is one of `choices`.
Status CheckChoice(const std::string& option, const std::string& value, const std::vector<std::string>& choices);

// `text` as a decimal whole number of at least `min`. kUsage for anything else, also for a number that no int64 holds, which
// CLI11 would quietly replace by the largest.
Result<int64_t> ParseWhole(const std::string& option, const std::string& text, int64_t min);

// "a,b,c" -> {"a", "b", "c"}; empty parts are dropped.
std::vector<std::string> SplitCommas(const std::string& text);

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// Text in messages: names from files made safe to print, suggestions for misspelt words, sizes for people.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace autoep {

bool IsUtf8(std::string_view text);

// `text` with control characters, bytes that are not UTF-8, and marks that reorder text written as \xNN or \u{NNNN}, cut at
// 200 bytes. For every name that comes from a file.
std::string Printable(std::string_view text);

// " (did you mean 'mixtral'?)" for the closest of `known`, or "" where none is close.
std::string DidYouMean(std::string_view word, const std::vector<std::string>& known);

// "a, b and c"
std::string JoinWords(const std::vector<std::string>& words);

// "96.0 MiB", "17 B"
std::string HumanBytes(uint64_t bytes);

}  // namespace autoep

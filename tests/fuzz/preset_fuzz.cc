// SPDX-License-Identifier: Apache-2.0
// Whatever the text: FILE:LINE:COL and a sentence, or a preset that answers.
#include <cstdlib>
#include <string_view>

#include "presets/preset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace autoep;
  const auto preset = ParsePreset(std::string_view(reinterpret_cast<const char*>(data), size), "input");
  if (!preset.ok()) {
    if (preset.status().code() != Code::kUsage || !preset.status().message().starts_with("input:")) std::abort();
    return 0;
  }
  if (preset->name.empty() || preset->layouts.empty()) std::abort();
  return 0;
}

#ifndef AUTOEP_LIBFUZZER
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/driver.h"

TEST(Fuzz, Preset) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator("presets")) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  std::vector<std::string> seeds;
  for (const std::string& file : files) {
    if (!file.ends_with(".yaml")) continue;
    std::ifstream in(file);
    seeds.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    ASSERT_TRUE(autoep::ParsePreset(seeds.back(), file).ok()) << file;
  }
  ASSERT_GE(seeds.size(), 2u);
  autoep::FuzzWithMutants(seeds, 4000);
}
#endif

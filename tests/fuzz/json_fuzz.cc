// SPDX-License-Identifier: Apache-2.0
// Whatever the text: a sentence, or a document that its own dump gives again.
#include <cstdlib>
#include <string_view>

#include "plugin/io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace autoep;
  const auto json = ParseJson(std::string_view(reinterpret_cast<const char*>(data), size), "input");
  if (!json.ok()) {
    if (json.status().code() != Code::kInput || !json.status().message().starts_with("input:")) std::abort();
    return 0;
  }
  const auto again = ParseJson(DumpJson(*json), "dump");
  if (!again.ok() || *again != *json) std::abort();
  return 0;
}

#ifndef AUTOEP_LIBFUZZER
#include <gtest/gtest.h>

#include "tests/fuzz/driver.h"

TEST(Fuzz, Json) {
  const std::vector<std::string> seeds = {
      R"({"version": 1, "layers": [{"path": "a.b", "top_k": 2, "args": [1.5, -2e-3]}], "ok": true, "none": null})",
      "[\"\\u00e9\\ud83d\\ude00\\n\", \"\xC3\xA9\", [[[[]]]], {}]", "18446744073709551615", "-0.0"};
  for (const std::string& seed : seeds) ASSERT_TRUE(autoep::ParseJson(seed, "seed").ok());
  autoep::FuzzWithMutants(seeds, 200000);
}
#endif

// SPDX-License-Identifier: Apache-2.0
// Whatever the bytes: a sentence with kInput, or an archive whose every record lies inside them and can be read.
#include <cstdlib>
#include <string_view>

#include "plugin/io/zip_directory.h"

namespace {

void Require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace autoep;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto directory = ZipDirectory::Parse(bytes, "input");
  if (!directory.ok()) {
    Require(directory.status().code() == Code::kInput && directory.status().message().starts_with("input: "));
    return 0;
  }
  uint64_t end = 0;
  for (const ZipRecord& record : directory->records()) {
    Require(record.offset > end && record.offset <= size && record.packed <= size - record.offset);
    end = record.offset + record.packed;
    Require(directory->Find(record.name) == &record);
    const bool intact = directory->CheckCrc(record).ok();
    // Not more than what the test machine has for a mutant that lies within the limits.
    if (record.size > (64 << 20)) continue;
    const auto content = directory->Read(record);
    Require(content.ok() == intact);
    if (intact) Require(content->size() == record.size);
  }
  return 0;
}

#ifndef AUTOEP_LIBFUZZER
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tests/fuzz/driver.h"
#include "tests/plugin/io/zip_builder.h"

TEST(Fuzz, ZipDirectory) {
  std::vector<std::string> seeds;
  for (const char* name : {"scripted.pt", "state_dict.pt", "legacy_pickle.pt"}) {
    std::ifstream in(std::string("tests/plugin/io/testdata/") + name, std::ios::binary);
    ASSERT_TRUE(in.good()) << name;
    seeds.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  seeds.push_back(autoep::BuildZip(autoep::TorchScriptParts()));
  seeds.push_back(autoep::BuildZip(autoep::TorchScriptParts(), {.zip64 = false}));
  ASSERT_TRUE(autoep::ZipDirectory::Parse(seeds[0], "seed").ok());
  ASSERT_TRUE(autoep::ZipDirectory::Parse(seeds[3], "seed").ok());
  autoep::FuzzWithMutants(seeds, 100000);
}
#endif

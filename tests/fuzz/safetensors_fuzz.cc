// SPDX-License-Identifier: Apache-2.0
// Whatever the bytes: a sentence with kInput, or tensors that fill the rest of the file in order.
#include <cstdlib>
#include <string_view>

#include "plugin/io/safetensors.h"

namespace {

void Require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace autoep;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto file = SafetensorsFile::Parse(bytes, "input");
  if (!file.ok()) {
    Require(file.status().code() == Code::kInput && file.status().message().starts_with("input"));
    return 0;
  }
  const char* next = file->tensors().empty() ? bytes.data() + size : file->tensors().front().data;
  for (const SafetensorsTensor& tensor : file->tensors()) {
    Require(tensor.data == next);
    next += tensor.bytes;
    Require(file->Find(tensor.name) == &tensor);
  }
  Require(next == bytes.data() + size);
  // What was read can be written, and is read again as it was.
  std::string copy;
  const std::vector<SafetensorsSpec> specs(file->tensors().begin(), file->tensors().end());
  auto writer = SafetensorsWriter::Create(specs, file->metadata(), [&](const void* piece, size_t length) {
    copy.append(static_cast<const char*>(piece), length);
    return Status();
  });
  Require(writer.ok());
  for (const SafetensorsSpec& spec : writer->tensors()) {
    const SafetensorsTensor* tensor = file->Find(spec.name);
    Require(writer->Append(tensor->data, tensor->bytes).ok());
  }
  Require(writer->Finish().ok());
  const auto again = SafetensorsFile::Parse(copy, "copy");
  Require(again.ok() && again->metadata() == file->metadata() && again->tensors().size() == specs.size());
  return 0;
}

#ifndef AUTOEP_LIBFUZZER
#include <gtest/gtest.h>

#include "tests/fuzz/driver.h"

namespace {

std::string File(const std::string& header, const std::string& data) {
  std::string out(1, static_cast<char>(header.size()));
  return out + std::string(7, '\0') + header + data;
}

}  // namespace

TEST(Fuzz, Safetensors) {
  const std::vector<std::string> seeds = {
      File(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"I8","shape":[3],"data_offsets":[16,19]}} )",
           "0123456789abcdefghi"),
      File(R"({"__metadata__":{"k":"v"},"z":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})", "xy"),
      File(R"({"e":{"dtype":"F64","shape":[0,5],"data_offsets":[0,0]}})", ""), File("{}", "")};
  for (const std::string& seed : seeds) ASSERT_TRUE(autoep::SafetensorsFile::Parse(seed, "seed").ok());
  autoep::FuzzWithMutants(seeds, 200000);
}
#endif

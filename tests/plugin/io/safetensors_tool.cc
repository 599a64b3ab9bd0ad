// SPDX-License-Identifier: Apache-2.0
// Lets a Python test compare with the reference implementation: `check FILE...` prints "ok" or the sentence for each file,
// `copy IN OUT` reads a file and writes its tensors again.
#include <cstdio>
#include <string>
#include <string_view>

#include "plugin/io/output.h"
#include "plugin/io/safetensors.h"

namespace autoep {
namespace {

Status Copy(const std::string& from, const std::string& to) {
  AUTOEP_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(from));
  AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedFile::Create(to));
  const std::vector<SafetensorsSpec> specs(file.tensors().begin(), file.tensors().end());
  AUTOEP_ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(specs, file.metadata(), staged->file().Sink()));
  for (const SafetensorsSpec& spec : writer.tensors()) {
    const SafetensorsTensor* tensor = file.Find(spec.name);
    AUTOEP_RETURN_IF_ERROR(writer.Append(tensor->data, tensor->bytes));
  }
  AUTOEP_RETURN_IF_ERROR(writer.Finish());
  return staged->Publish();
}

int Main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  bool all_ok = argc > 2;
  if (command == "check") {
    for (int i = 2; i < argc; ++i) {
      const Status status = SafetensorsFile::Open(argv[i]).status();
      std::puts(status.ok() ? "ok" : status.message().c_str());
      all_ok = all_ok && status.ok();
    }
    return all_ok ? 0 : 1;
  }
  if (command != "copy" || argc != 4) return 2;
  const Status status = Copy(argv[2], argv[3]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace autoep

int main(int argc, char** argv) { return autoep::Main(argc, argv); }

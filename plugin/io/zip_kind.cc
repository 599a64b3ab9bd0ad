// SPDX-License-Identifier: Apache-2.0
// What a file is that is no TorchScript archive.
#include "plugin/io/zip_kind.h"

#include <fmt/format.h>

#include "plugin/io/safetensors_format.h"
#include "plugin/io/zip_directory.h"

namespace autoep {
namespace {

constexpr char kHowTo[] = "; save the model itself with torch.jit.save(torch.jit.trace(model.eval(), example), PATH)";

Status Kind(std::string_view what) { return Status(Code::kInput, fmt::format("{}{}", what, kHowTo)); }

bool HasUnder(const ZipDirectory& directory, std::string_view folder) {
  for (const ZipRecord& record : directory.records()) {
    if (record.name.starts_with(folder)) return true;
  }
  return false;
}

bool IsSafetensors(std::string_view bytes) {
  if (bytes.size() <= kSafetensorsPrefix || bytes[kSafetensorsPrefix] != '{') return false;
  return LittleEndian64(bytes) <= kSafetensorsHeaderLimit;
}

}  // namespace

Status CheckZipMagic(std::string_view bytes) {
  // A zip without records begins with one of its end records.
  if (bytes.starts_with("PK\x03\x04") || bytes.starts_with("PK\x05\x06") || bytes.starts_with("PK\x06\x06")) return Status();
  // A pickle begins with its protocol, 2 or more.
  if (bytes.size() >= 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5) {
    return Kind("this is a pickle, such as torch.save wrote before version 1.6, not a TorchScript archive");
  }
  if (IsSafetensors(bytes)) return Kind("this is a safetensors file: tensors without a model");
  if (std::string_view("PK\x03\x04").starts_with(bytes))
    return Status(Code::kInput, "the file is truncated; copy or save it again");
  return Status(Code::kInput, "this is not a TorchScript archive: it does not begin as a zip file does");
}

Status CheckTorchScript(const ZipDirectory& directory) {
  const bool code = HasUnder(directory, "code/");
  if (code && directory.Find("data.pkl") != nullptr && directory.Find("constants.pkl") != nullptr) {
    if (directory.Find("version") != nullptr || directory.Find(".data/version") != nullptr) return Status();
    return Status(Code::kInput, "the archive has no record 'version', so it is no complete TorchScript archive; save it again");
  }
  if (!code && directory.Find("data.pkl") != nullptr) {
    return Kind("this is a plain torch.save file (a state dict or a pickled model), not a TorchScript archive");
  }
  if (directory.Find("archive_format") != nullptr) return Kind("this is a torch.export archive, not a TorchScript archive");
  if (HasUnder(directory, ".data/extern_modules")) return Kind("this is a torch.package archive, not a TorchScript archive");
  return Kind("this is a zip file, but not a TorchScript archive: it lacks code, data.pkl or constants.pkl");
}

}  // namespace autoep

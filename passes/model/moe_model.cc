// SPDX-License-Identifier: Apache-2.0
// Opening and writing TorchScript archives: storages over the mapping on the way in, a fixed root name on the way out.
#include "passes/model/moe_model.h"

#include <caffe2/serialize/inline_container.h>
#include <fmt/format.h>
#include <torch/csrc/jit/api/compilation_unit.h>
#include <torch/csrc/jit/operator_upgraders/upgraders_entry.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/import_read.h>
#include <torch/csrc/jit/serialization/import_source.h>
#include <torch/csrc/jit/serialization/storage_context.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "passes/model/debug_ranges.h"
#include "passes/model/tensors.h"
#include "passes/model/uncalled.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

using caffe2::serialize::PyTorchStreamReader;
using torch::jit::DeserializationStorageContext;

// LibTorch's reader over the bytes that were checked, not over whatever the path names by now.
class MappingAdapter : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MappingAdapter(std::shared_ptr<const Archive> archive) : archive_(std::move(archive)) {}
  size_t size() const override { return archive_->zip().bytes(); }
  size_t read(uint64_t pos, void* buffer, size_t n, const char*) const override {
    if (pos >= size()) return 0;
    n = std::min<size_t>(n, size() - pos);
    std::memcpy(buffer, archive_->zip().file()->data() + pos, n);
    return n;
  }

 private:
  std::shared_ptr<const Archive> archive_;
};

// Storages over the mapping for the records "<folder>N". They keep the archive alive and cannot be resized.
std::shared_ptr<DeserializationStorageContext> MapStorages(const std::shared_ptr<Archive>& archive, const std::string& folder) {
  auto context = std::make_shared<DeserializationStorageContext>();
  for (const ZipRecord& record : archive->zip().records()) {
    if (!Archive::IsTensorRecord(record.name) || !record.name.starts_with(folder)) continue;
    char* data = const_cast<char*>(archive->zip().Packed(record).data());
    c10::DataPtr pointer(
        data, new std::shared_ptr<Archive>(archive), [](void* keeper) { delete static_cast<std::shared_ptr<Archive>*>(keeper); },
        c10::kCPU);
    context->addStorage(record.name.substr(folder.size()),
                        c10::Storage(c10::Storage::use_byte_size_t(), record.size, std::move(pointer), nullptr, false));
  }
  return context;
}

// Whether some object of the archive is built by code (`__setstate__`) or by a C++ class, which may write to its tensors.
Result<bool> NeedsCode(const Archive& archive) {
  for (const ZipRecord& record : archive.zip().records()) {
    if (!record.name.starts_with("code/") || !record.name.ends_with(".py")) continue;
    AUTOEP_ASSIGN_OR_RETURN(const std::string text, archive.zip().Read(record));
    if (text.find("__setstate__") != std::string::npos || text.find("__torch__.torch.classes.") != std::string::npos) return true;
  }
  return false;
}

// The code record of a class or function: "__torch__.m" -> "code/__torch__/m.py".
std::shared_ptr<torch::jit::Source> ReadSource(const Archive& archive, const std::string& qualifier) {
  std::string name = "code/" + qualifier + ".py";
  std::replace(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(name.size() - 3), '.', '/');
  const ZipRecord* record = archive.zip().Find(name);
  if (record == nullptr) return nullptr;
  const Result<std::string> text = archive.zip().Read(*record);
  TORCH_CHECK(text.ok(), text.status().message());
  std::shared_ptr<torch::jit::SourceRangeUnpickler> ranges;
  if (const ZipRecord* debug = archive.zip().Find(name + ".debug_pkl")) {
    Result<std::string> bytes = archive.zip().Read(*debug);
    TORCH_CHECK(bytes.ok(), bytes.status().message());
    ranges = MakeDebugRanges(std::move(*bytes));
  }
  return std::make_shared<torch::jit::Source>(*text, name, 1, ranges);
}

// What torch::jit::load does, with storages over the mapping if `mapped`.
MoeModel ReadModel(const std::shared_ptr<Archive>& archive, bool mapped) {
  torch::jit::populate_upgraders_graph_map();  // for files of an older torch, whose operators meant something else
  PyTorchStreamReader reader(std::make_shared<MappingAdapter>(archive));
  auto unit = std::make_shared<torch::jit::CompilationUnit>();
  MoeModel model{archive, {}, {}};
  torch::jit::SourceImporter importer(
      unit, &model.constants, [&](const std::string& qualifier) { return ReadSource(*archive, qualifier); }, reader.version());
  const auto resolve = [&](const c10::QualifiedName& name) { return c10::StrongTypePtr(unit, importer.loadType(name)); };
  const auto read = [&](const std::string& name, const std::string& folder) {
    return torch::jit::readArchiveAndTensors(name, "", folder, resolve, torch::jit::ObjLoaderFunc, c10::kCPU, reader,
                                             torch::jit::Unpickler::defaultTypeParser,
                                             mapped ? MapStorages(archive, folder) : nullptr);
  };
  const at::IValue constants = read("constants", "constants/");
  for (const at::IValue& constant : constants.toTupleRef().elements()) model.constants.push_back(constant);
  model.module = torch::jit::Module(read("data", "data/").toObject());
  return model;
}

Status CheckByteOrder(const Archive& archive) {
  const ZipRecord* record = archive.zip().Find("byteorder");
  if (record == nullptr) return Status();
  AUTOEP_ASSIGN_OR_RETURN(const std::string order, archive.zip().Read(*record));
  if (order == "little") return Status();
  return Status(Code::kInput,
                fmt::format("{}: its tensors have byte order '{}', and only 'little' is read here: save it again on a "
                            "little-endian machine",
                            Printable(archive.path()), Printable(order)));
}

Status Unreadable(const Archive& archive, const std::string& why) {
  return Status(Code::kInput, fmt::format("{}: LibTorch cannot read this TorchScript archive: {}", Printable(archive.path()),
                                          Printable(why.substr(0, why.find('\n')))));
}

}  // namespace

Result<MoeModel> OpenModel(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(std::shared_ptr<Archive> archive, Archive::Open(path));
  return OpenModel(std::move(archive));
}

Result<MoeModel> OpenModel(std::shared_ptr<Archive> archive) {
  AUTOEP_RETURN_IF_ERROR(CheckByteOrder(*archive));
  AUTOEP_ASSIGN_OR_RETURN(const bool needs_code, NeedsCode(*archive));
  if (needs_code) AUTOEP_RETURN_IF_ERROR(archive->CheckAllRecords());
  try {
    MoeModel model = ReadModel(archive, !needs_code);
    RemoveUncalled(model.module);
    AUTOEP_RETURN_IF_ERROR(CheckTensorBounds(model).At(Printable(archive->path())));
    return model;
  } catch (const c10::Error& error) {
    return Unreadable(*archive, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Unreadable(*archive, error.what());
  }
}

Status WriteModel(const torch::jit::Module& module, const std::map<std::string, std::string>& extra_files, const ByteSink& sink) {
  Status failure;
  // After a failure the rest is swallowed: LibTorch's writer finishes the archive in its destructor, and a second failure
  // there would end the process.
  const auto write = [&](const void* data, size_t size) -> size_t {
    if (failure.ok()) failure = sink(data, size);
    return size;
  };
  try {
    const torch::jit::ExtraFilesMap extra(extra_files.begin(), extra_files.end());
    torch::jit::ExportModule(module, write, extra);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, std::string("LibTorch could not serialise the model: ") + error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Status(Code::kBug, std::string("LibTorch could not serialise the model: ") + error.what());
  }
  return failure;
}

}  // namespace autoep

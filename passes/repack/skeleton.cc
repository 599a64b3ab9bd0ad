// SPDX-License-Identifier: Apache-2.0
// Decides where each record of the source lives on, and copies those that live nowhere else.
#include "passes/repack/skeleton.h"

#include <caffe2/serialize/inline_container.h>

#include <map>
#include <set>
#include <string>
#include <tuple>

#include "passes/model/tensors.h"
#include "plugin/io/json.h"

namespace autoep {
namespace {

constexpr char kListName[] = "autoep/records.json";
constexpr char kHere[] = "skeleton";

// Records whose storage a tensor of the rewritten module uses: LibTorch writes storages whole.
std::set<const ZipRecord*> ModelRecords(const Archive& source, const torch::jit::Module& rewritten) {
  std::set<const ZipRecord*> records;
  for (const NamedTensor& named : AttributeTensors(rewritten)) records.insert(source.RecordAt(named.tensor.storage().data()));
  for (const at::Tensor& constant : GraphConstants(rewritten)) records.insert(source.RecordAt(constant.storage().data()));
  return records;
}

// Records that consist of expert tensors and nothing else.
std::set<const ZipRecord*> ExpertRecords(const Archive& source, const Plan& plan) {
  std::set<std::tuple<const void*, size_t>> seen;
  std::map<const ZipRecord*, uint64_t> covered;
  for (const PlannedLayer& planned : plan.layers) {
    for (const PlannedTensor& tensor : planned.tensors) {
      for (const at::Tensor& part : tensor.tensor.sources) {
        if (seen.insert({part.const_data_ptr(), part.nbytes()}).second)
          covered[source.RecordAt(part.const_data_ptr())] += part.nbytes();
      }
    }
  }
  std::set<const ZipRecord*> records;
  for (const auto& [record, bytes] : covered) {
    if (record != nullptr && bytes == record->size) records.insert(record);
  }
  return records;
}

class SkeletonWriter {
 public:
  SkeletonWriter(Archive& source, const Plan& plan, const torch::jit::Module& rewritten, bool strip_debug)
      : source_(source),
        in_model_(ModelRecords(source, rewritten)),
        in_experts_(ExpertRecords(source, plan)),
        strip_debug_(strip_debug) {}

  // Throws what LibTorch's writer throws.
  Status Write(const ByteSink& sink) {
    Status failure;
    // The rest is swallowed after a failure: see WriteModel.
    caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, size_t size) {
      if (failure.ok()) failure = sink(data, size);
      return size;
    });
    Status status = CopyRecords(writer);
    writer.writeEndOfFile();
    return failure.ok() ? status : failure;
  }

 private:
  Status CopyRecords(caffe2::serialize::PyTorchStreamWriter& writer) {
    Json records = Json::array();
    std::string serialization_id;
    for (const ZipRecord& record : source_.zip().records()) {
      const std::string place = PlaceOf(record);
      records.push_back(
          {{"name", record.name}, {"bytes", record.size}, {"crc32", record.crc}, {"deflated", record.deflated}, {"in", place}});
      if (place == kHere) AUTOEP_RETURN_IF_ERROR(Copy(record, writer, &serialization_id));
    }
    const std::string list = DumpJson({{"serialization_id", serialization_id}, {"records", std::move(records)}});
    writer.writeRecord(kListName, list.data(), list.size());
    return Status();
  }

  std::string PlaceOf(const ZipRecord& record) const {
    if (in_model_.count(&record) > 0) return "model";
    if (in_experts_.count(&record) > 0) return "experts";
    if (strip_debug_ && record.name.ends_with(".debug_pkl")) return "nowhere";
    return kHere;
  }

  Status Copy(const ZipRecord& record, caffe2::serialize::PyTorchStreamWriter& writer, std::string* serialization_id) {
    if (!record.deflated) {
      AUTOEP_RETURN_IF_ERROR(source_.zip().CheckCrc(record));
      const std::string_view bytes = source_.zip().Packed(record);
      if (record.name == caffe2::serialize::kSerializationIdRecordName) {
        *serialization_id = bytes;
      } else {
        writer.writeRecord(record.name, bytes.data(), bytes.size());
      }
      return Status();
    }
    AUTOEP_ASSIGN_OR_RETURN(const std::string bytes, source_.zip().Read(record));
    writer.writeRecord(record.name, bytes.data(), bytes.size(), /*compress=*/true);
    return Status();
  }

  Archive& source_;
  const std::set<const ZipRecord*> in_model_;
  const std::set<const ZipRecord*> in_experts_;
  const bool strip_debug_;
};

}  // namespace

Status WriteSkeleton(Archive& source, const Plan& plan, const torch::jit::Module& rewritten, bool strip_debug,
                     const ByteSink& sink) {
  try {
    return SkeletonWriter(source, plan, rewritten, strip_debug).Write(sink);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, std::string("LibTorch could not write the skeleton: ") + error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Status(Code::kBug, std::string("LibTorch could not write the skeleton: ") + error.what());
  }
}

}  // namespace autoep

// SPDX-License-Identifier: Apache-2.0
// VerifyBytes: the proof of the expert bytes (passes/repack/prove.h), and the tensors that every rank has.
#include <fmt/format.h>

#include <map>
#include <set>
#include <string>

#include "passes/model/tensors.h"
#include "passes/repack/prove.h"
#include "plugin/io/sha256.h"
#include "plugin/io/text.h"
#include "tools/verify.h"

namespace autoep {
namespace {

Status Fail(const std::string& sentence) { return Status(Code::kVerify, sentence); }

// Of dtype, shape and values.
std::string DigestOf(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  Sha256 digest;
  const std::string head = fmt::format("{} {} ", c10::toString(dense.scalar_type()), fmt::join(dense.sizes(), ","));
  digest.Update(head.data(), head.size());
  if (dense.nbytes() > 0) digest.Update(dense.const_data_ptr(), dense.nbytes());
  return digest.HexDigest();
}

// What the manifest says of tensor names.
struct Names {
  std::set<std::string> experts;  // of the source: parts of expert tensors
  std::set<std::string> added;    // of the converted model

  explicit Names(const contract::Manifest& manifest) {
    for (const contract::ManifestLayer& layer : manifest.layers) {
      added.insert(layer.placement_attr);
      for (const contract::ManifestTensor& tensor : layer.tensors) {
        added.insert(tensor.param);
        for (const contract::SourcePart& part : tensor.source) experts.insert(part.tensor);
      }
    }
  }
};

// Parameters and buffers keep their names; each is the source's.
Status CheckAttributes(const std::string& file, const MoeModel& source, const MoeModel& model, const Names& names,
                       VerifyReport* report) {
  std::map<std::string, at::Tensor> originals;
  for (const NamedTensor& original : AttributeTensors(source.module)) originals.emplace(original.name, original.tensor);
  for (const auto& [name, tensor] : AttributeTensors(model.module)) {
    if (names.added.count(name)) continue;
    const std::string shown = Printable(name);
    if (names.experts.count(name))
      return Fail(fmt::format("{} still holds the expert tensor '{}', which the shards have", file, shown));
    const auto original = originals.find(name);
    if (original == originals.end())
      return Fail(fmt::format("{} holds '{}', which neither the source nor the manifest has", file, shown));
    if (DigestOf(original->second) != DigestOf(tensor)) {
      return Fail(fmt::format("{}: '{}' is not what it is in the source; every rank must have the source's tensor", file, shown));
    }
    ++report->replicated_tensors;
  }
  return Status();
}

// Constants of graphs have no names that last: each must be some constant of the source, and none an expert's weight.
// Biases are left out of the latter: two that are zero are equal.
Status CheckConstants(const std::string& file, const MoeModel& source, const MoeModel& model, const Names& names,
                      VerifyReport* report) {
  std::set<std::string> originals;
  for (const at::Tensor& constant : GraphConstants(source.module)) originals.insert(DigestOf(constant));
  std::set<std::string> experts;
  const SourceTensors tensors(source);
  for (const std::string& name : names.experts) {
    const auto tensor = tensors.Find(name);
    if (tensor && tensor->dim() >= 2) experts.insert(DigestOf(*tensor));
  }
  for (const at::Tensor& constant : GraphConstants(model.module)) {
    const std::string digest = DigestOf(constant);
    const std::string shown = fmt::format("a constant [{}] in its graphs", fmt::join(constant.sizes(), ", "));
    if (experts.count(digest)) return Fail(fmt::format("{} still holds expert weights: {}", file, shown));
    if (!originals.count(digest)) return Fail(fmt::format("{} has {} that no graph of the source has", file, shown));
    ++report->replicated_tensors;
  }
  return Status();
}

}  // namespace

Status VerifyBytes(const MoeModel& source, const std::string& directory, const contract::Manifest& manifest, VerifyReport* report) {
  AUTOEP_ASSIGN_OR_RETURN(const ByteProof proof, ProveBytes(source, manifest, directory));
  report->expert_bytes = proof.bytes;
  AUTOEP_RETURN_IF_ERROR(source.archive->CheckAllRecords());
  const Names names(manifest);
  const bool shared = manifest.layout == "shared";
  for (int64_t rank = 0; rank < (shared ? 1 : manifest.ep_size); ++rank) {
    const std::string file = shared ? contract::kModelName : contract::PerRankModelName(rank, manifest.ep_size);
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel model, OpenModel(directory + "/" + file));
    report->replicated_tensors = 0;
    AUTOEP_RETURN_IF_ERROR(CheckAttributes(file, source, model, names, report));
    AUTOEP_RETURN_IF_ERROR(CheckConstants(file, source, model, names, report));
  }
  report->bytes_proved = true;
  return Status();
}

}  // namespace autoep

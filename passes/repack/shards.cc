// SPDX-License-Identifier: Apache-2.0
// All ranks' files are written side by side, so that the source is read once, in its own order.
#include "passes/repack/shards.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "passes/repack/canonical.h"
#include "plugin/contract/dtype.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/sha256.h"

namespace autoep {
namespace {

struct Shard {
  std::unique_ptr<OutputFile> file;
  std::optional<SafetensorsWriter> writer;
};

struct TensorAt {
  size_t layer = 0;
  size_t tensor = 0;
};

std::vector<SafetensorsSpec> Specs(const Plan& plan) {
  std::vector<SafetensorsSpec> specs;
  for (const PlannedLayer& planned : plan.layers) {
    for (const PlannedTensor& tensor : planned.tensors) {
      std::vector<int64_t> shape = tensor.tensor.shape;
      shape[0] /= plan.ep_size;
      specs.push_back({tensor.param, std::string(contract::FindDtype(tensor.tensor.dtype)->name), std::move(shape)});
    }
  }
  return specs;
}

Result<std::vector<Shard>> OpenShards(const Plan& plan, StagedDirectory& output) {
  std::vector<Shard> shards(plan.ep_size);
  for (int64_t rank = 0; rank < plan.ep_size; ++rank) {
    AUTOEP_ASSIGN_OR_RETURN(shards[rank].file, output.CreateFile(contract::ShardName(rank, plan.ep_size)));
    const std::map<std::string, std::string> metadata = {{"autoep.plan", plan.digest}, {"autoep.rank", fmt::to_string(rank)}};
    AUTOEP_ASSIGN_OR_RETURN(shards[rank].writer, SafetensorsWriter::Create(Specs(plan), metadata, shards[rank].file->Sink()));
  }
  return shards;
}

Status CheckSources(const ExpertTensor& tensor, Archive& source) {
  for (const at::Tensor& part : tensor.sources) AUTOEP_RETURN_IF_ERROR(source.CheckTensorRecord(part.const_data_ptr()));
  return Status();
}

// The pages of a big model must not push everything else out of memory.
void ForgetSources(const ExpertTensor& tensor, const Archive& source) {
  for (const at::Tensor& part : tensor.sources) {
    if (const ZipRecord* record = source.RecordAt(part.const_data_ptr())) source.zip().file()->Forget(record->offset, record->size);
  }
}

Result<contract::ShardPiece> WritePiece(const PlannedTensor& planned, const contract::Placement& placement, int64_t rank,
                                        Shard& shard) {
  contract::ShardPiece piece;
  piece.rank = rank;
  piece.shape = planned.tensor.shape;
  piece.shape[0] /= placement.ep_size;
  Sha256 digest;
  for (int64_t expert : placement.ExpertsOf(rank)) {
    AUTOEP_ASSIGN_OR_RETURN(const at::Tensor bytes, CanonicalExpert(planned.tensor, expert));
    AUTOEP_RETURN_IF_ERROR(shard.writer->Append(bytes.const_data_ptr(), bytes.nbytes()));
    digest.Update(bytes.const_data_ptr(), bytes.nbytes());
    piece.bytes += static_cast<int64_t>(bytes.nbytes());
  }
  piece.sha256 = digest.HexDigest();
  return piece;
}

std::map<std::string, TensorAt> IndexTensors(const Plan& plan, ShardSet& set) {
  std::map<std::string, TensorAt> places;
  set.pieces.resize(plan.layers.size());
  for (size_t layer = 0; layer < plan.layers.size(); ++layer) {
    set.pieces[layer].resize(plan.layers[layer].tensors.size());
    for (size_t i = 0; i < plan.layers[layer].tensors.size(); ++i) places[plan.layers[layer].tensors[i].param] = {layer, i};
  }
  return places;
}

}  // namespace

Result<ShardSet> WriteShards(const Plan& plan, Archive& source, StagedDirectory& output) {
  ShardSet set;
  const auto places = IndexTensors(plan, set);
  AUTOEP_ASSIGN_OR_RETURN(std::vector<Shard> shards, OpenShards(plan, output));
  for (const SafetensorsSpec& spec : shards[0].writer->tensors()) {
    const TensorAt place = places.at(spec.name);
    const PlannedLayer& layer = plan.layers[place.layer];
    const PlannedTensor& planned = layer.tensors[place.tensor];
    AUTOEP_RETURN_IF_ERROR(CheckSources(planned.tensor, source));
    for (int64_t rank = 0; rank < plan.ep_size; ++rank) {
      AUTOEP_ASSIGN_OR_RETURN(contract::ShardPiece piece, WritePiece(planned, layer.placement, rank, shards[rank]));
      set.pieces[place.layer][place.tensor].push_back(std::move(piece));
    }
    ForgetSources(planned.tensor, source);
  }
  for (int64_t rank = 0; rank < plan.ep_size; ++rank) {
    AUTOEP_RETURN_IF_ERROR(shards[rank].writer->Finish());
    AUTOEP_RETURN_IF_ERROR(shards[rank].file->Finish());
    set.files.push_back(
        {contract::ShardName(rank, plan.ep_size), static_cast<int64_t>(shards[rank].file->bytes()), shards[rank].file->sha256()});
  }
  return set;
}

}  // namespace autoep

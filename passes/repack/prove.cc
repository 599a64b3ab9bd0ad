// SPDX-License-Identifier: Apache-2.0
// ProveBytes: for each element of each source tensor that the manifest names, the element of the shard where it must be.
#include "passes/repack/prove.h"

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "passes/model/tensors.h"
#include "plugin/contract/dtype.h"
#include "plugin/contract/shard.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/sha256.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

using contract::Manifest;
using contract::ManifestLayer;
using contract::ManifestTensor;
using contract::SourcePart;

template <typename... Args>
Status Fail(fmt::format_string<Args...> format, Args&&... args) {
  return Status(Code::kVerify, fmt::format(format, std::forward<Args>(args)...));
}

Status AsVerify(const Status& status) { return status.ok() ? status : Status(Code::kVerify, status.message()); }

// The bytes of a rank's expert tensors, by parameter name: in its shard, or in its own model.
class RankTensors {
 public:
  static Result<RankTensors> Open(const Manifest& manifest, const std::string& directory, int64_t rank) {
    RankTensors tensors;
    if (manifest.layout == "shared") {
      tensors.file_ = contract::ShardName(rank, manifest.ep_size);
      auto shard = contract::OpenShard(manifest, directory, rank);
      if (!shard.ok()) return AsVerify(shard.status());
      tensors.shard_ = std::move(*shard);
    } else {
      tensors.file_ = contract::PerRankModelName(rank, manifest.ep_size);
      auto model = OpenModel(directory + "/" + tensors.file_);
      if (!model.ok()) return AsVerify(model.status());
      tensors.model_ = std::move(*model);
    }
    return tensors;
  }

  const std::string& file() const { return file_; }

  // Contiguous bytes of the size that `piece` says.
  Result<const char*> Find(const ManifestTensor& tensor, const contract::ShardPiece& piece) const {
    const char* data = nullptr;
    int64_t bytes = -1;
    if (shard_) {
      if (const SafetensorsTensor* stored = shard_->Find(tensor.param))
        std::tie(data, bytes) = std::pair(stored->data, static_cast<int64_t>(stored->bytes));
    } else if (const auto stored = Parameter(tensor.param); stored && stored->is_contiguous()) {
      AUTOEP_RETURN_IF_ERROR(AsVerify(model_->archive->CheckTensorRecord(stored->const_data_ptr())));
      std::tie(data, bytes) = std::pair(static_cast<const char*>(stored->const_data_ptr()), static_cast<int64_t>(stored->nbytes()));
    }
    if (bytes != piece.bytes) return Fail("{}: no tensor '{}' of {} bytes", file_, Printable(tensor.param), piece.bytes);
    return data;
  }

 private:
  std::optional<at::Tensor> Parameter(const std::string& param) const {
    const size_t dot = param.rfind('.');
    const auto module = FindModule(model_->module, dot == std::string::npos ? "" : param.substr(0, dot));
    const std::string name = dot == std::string::npos ? param : param.substr(dot + 1);
    if (!module || !module->hasattr(name) || !module->attr(name).isTensor()) return std::nullopt;
    return module->attr(name).toTensor();
  }

  std::string file_;
  std::optional<SafetensorsFile> shard_;
  std::optional<MoeModel> model_;
};

// A source tensor as [experts, rows, columns], by the bytes between neighbours.
struct SourceView {
  const char* data = nullptr;
  int64_t element = 0;
  int64_t experts = 0, rows = 0, columns = 0;
  int64_t expert_step = 0, row_step = 0, column_step = 0;
};

// Which rows of a source tensor were found, all experts and columns each.
struct Coverage {
  SourceView view;
  int64_t bytes = 0;
  std::vector<int8_t> found;  // [experts * rows]
};

// `identity`: entries that a stack may have behind those of the experts.
Result<SourceView> ViewSource(const SourcePart& part, const at::Tensor& source, const ManifestTensor& tensor, int64_t identity) {
  const bool matrix = tensor.shape.size() == 3;
  const int64_t dims = matrix ? 3 : 2;
  std::vector<int64_t> sizes = source.sizes().vec();
  std::vector<int64_t> strides = source.strides().vec();
  // A Linear's weight or bias, or a stack whose experts lie one below the other.
  if (source.dim() == dims - 1 && part.expert_count > 0 && sizes[0] % part.expert_count == 0) {
    sizes[0] /= part.expert_count;
    sizes.insert(sizes.begin(), part.expert_count);
    strides.insert(strides.begin(), strides[0] * sizes[1]);
  }
  const bool all = source.dim() == dims && part.expert_count == tensor.shape[0];
  if (all && sizes[0] == part.expert_count + identity) sizes[0] = part.expert_count;
  if (static_cast<int64_t>(sizes.size()) != dims || sizes[0] != part.expert_count) {
    return Fail("{}: the source tensor has {} dimensions and cannot hold {} experts", Printable(part.tensor), source.dim(),
                part.expert_count);
  }
  if (!matrix) {
    sizes.push_back(1);
    strides.push_back(0);
  }
  if (part.transposed) {
    std::swap(sizes[1], sizes[2]);
    std::swap(strides[1], strides[2]);
  }
  const int64_t columns = matrix ? tensor.shape[2] : 1;
  if (sizes[2] != columns)
    return Fail("{}: the source tensor has {} columns, expected {}", Printable(part.tensor), sizes[2], columns);
  const int64_t bytes = source.element_size();
  return SourceView{static_cast<const char*>(source.const_data_ptr()),
                    bytes,
                    sizes[0],
                    sizes[1],
                    sizes[2],
                    strides[0] * bytes,
                    strides[1] * bytes,
                    strides[2] * bytes};
}

bool SameRow(const SourceView& view, const char* source, const char* stored) {
  if (view.column_step == view.element) return std::memcmp(source, stored, view.columns * view.element) == 0;
  for (int64_t c = 0; c < view.columns; ++c) {
    if (std::memcmp(source + c * view.column_step, stored + c * view.element, view.element) != 0) return false;
  }
  return true;
}

class Prover {
 public:
  Prover(const MoeModel& source, const Manifest& manifest) : source_(source), names_(source), manifest_(manifest) {}

  Status Open(const std::string& directory) {
    for (int64_t rank = 0; rank < manifest_.ep_size; ++rank) {
      AUTOEP_ASSIGN_OR_RETURN(RankTensors tensors, RankTensors::Open(manifest_, directory, rank));
      ranks_.push_back(std::move(tensors));
    }
    return Status();
  }

  Status Prove(const ManifestLayer& layer, const ManifestTensor& tensor) {
    std::vector<const char*> pieces;
    for (const contract::ShardPiece& piece : tensor.pieces) {
      AUTOEP_ASSIGN_OR_RETURN(const char* data, ranks_.at(piece.rank).Find(tensor, piece));
      pieces.push_back(data);
      if (Sha256Hex({data, static_cast<size_t>(piece.bytes)}) == piece.sha256) continue;
      return Fail("{}: the bytes of '{}' are not those of the manifest's hash", ranks_[piece.rank].file(), Printable(tensor.param));
    }
    for (const SourcePart& part : tensor.source) AUTOEP_RETURN_IF_ERROR(ProvePart(layer, tensor, part, pieces));
    return Status();
  }

  // Every row of every source tensor was found.
  Result<ByteProof> Finish() const {
    ByteProof proof;
    for (const auto& [name, coverage] : covered_) {
      for (size_t i = 0; i < coverage.found.size(); ++i) {
        if (coverage.found[i]) continue;
        return Fail("row {} of expert {} of the source tensor '{}' is in no shard", i % coverage.view.rows, i / coverage.view.rows,
                    Printable(name));
      }
      ++proof.source_tensors;
      proof.bytes += coverage.bytes;
    }
    return proof;
  }

 private:
  Result<Coverage*> FindSource(const ManifestLayer& layer, const ManifestTensor& tensor, const SourcePart& part) {
    const auto found = names_.Find(part.tensor);
    if (!found) return Fail("the source has no tensor '{}', which the manifest names", Printable(part.tensor));
    const auto dtype = contract::FindDtype(found->scalar_type());
    if (!dtype || dtype->name != tensor.dtype)
      return Fail("the source tensor '{}' is not {}", Printable(part.tensor), tensor.dtype);
    AUTOEP_RETURN_IF_ERROR(source_.archive->CheckTensorRecord(found->const_data_ptr()));
    AUTOEP_ASSIGN_OR_RETURN(const SourceView view, ViewSource(part, *found, tensor, contract::IdentityExperts(layer.router)));
    Coverage& coverage = covered_[part.tensor];
    if (coverage.found.empty()) {
      coverage = {view, view.experts * view.rows * view.columns * view.element, std::vector<int8_t>(view.experts * view.rows, 0)};
    } else if (coverage.view.rows != view.rows || coverage.view.row_step != view.row_step) {
      return Fail("the source tensor '{}' is read in two ways", Printable(part.tensor));
    }
    return &coverage;
  }

  Status ProvePart(const ManifestLayer& layer, const ManifestTensor& tensor, const SourcePart& part,
                   const std::vector<const char*>& pieces) {
    AUTOEP_ASSIGN_OR_RETURN(Coverage* const coverage, FindSource(layer, tensor, part));
    const SourceView& view = coverage->view;
    const int64_t row_bytes = view.columns * view.element;
    for (int64_t e = 0; e < part.expert_count; ++e) {
      const contract::ExpertSlot slot = layer.placement.at(part.expert_begin + e);
      for (int64_t r = 0; r < part.row_count; ++r) {
        const int64_t row = part.source_row_begin + r * part.source_row_step;
        if (row < 0 || row >= view.rows) return Fail("the source tensor '{}' has no row {}", Printable(part.tensor), row);
        int8_t& found = coverage->found[e * view.rows + row];
        if (found++)
          return Fail("row {} of expert {} of the source tensor '{}' is in the shards twice", row, e, Printable(part.tensor));
        const char* stored = pieces.at(slot.rank) + (slot.slot * tensor.shape[1] + part.row_begin + r) * row_bytes;
        if (SameRow(view, view.data + e * view.expert_step + row * view.row_step, stored)) continue;
        return Fail("{}: '{}' of expert {} differs from the source: its row {} is not row {} of '{}'", ranks_[slot.rank].file(),
                    Printable(tensor.param), part.expert_begin + e, part.row_begin + r, row, Printable(part.tensor));
      }
    }
    return Status();
  }

  const MoeModel& source_;
  const SourceTensors names_;
  const Manifest& manifest_;
  std::vector<RankTensors> ranks_;
  std::map<std::string, Coverage> covered_;
};

}  // namespace

Result<ByteProof> ProveBytes(const MoeModel& source, const contract::Manifest& manifest, const std::string& directory) {
  if (manifest.source.digest != source.archive->digest()) {
    return Fail("{} is not the model that was converted: its digest is {}, and the manifest has {}",
                Printable(source.archive->path()), source.archive->digest(), manifest.source.digest);
  }
  Prover prover(source, manifest);
  AUTOEP_RETURN_IF_ERROR(prover.Open(directory));
  for (const ManifestLayer& layer : manifest.layers) {
    for (const ManifestTensor& tensor : layer.tensors) AUTOEP_RETURN_IF_ERROR(prover.Prove(layer, tensor));
  }
  return prover.Finish();
}

}  // namespace autoep

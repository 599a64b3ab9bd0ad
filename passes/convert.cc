// SPDX-License-Identifier: Apache-2.0
// The steps of a conversion, in order: plan, passes, shards, model files, skeleton, manifest.
#include "passes/convert.h"

#include <ATen/EmptyTensor.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <map>
#include <utility>
#include <vector>

#include "passes/model/modules.h"
#include "passes/model/tensors.h"
#include "passes/repack/plan.h"
#include "passes/repack/shards.h"
#include "passes/repack/skeleton.h"
#include "plugin/contract/dtype.h"
#include "plugin/contract/manifest_check.h"
#include "plugin/contract/schemas.h"
#include "plugin/contract/shard.h"

namespace autoep {
namespace {

using contract::Manifest;

constexpr char kPerRank[] = "per-rank";
constexpr char kStripDebug[] = "strip-debug";

contract::ManifestLayer DescribeLayer(const PlannedLayer& planned, const std::vector<std::vector<contract::ShardPiece>>& pieces) {
  const MoeLayer& found = planned.layer;
  contract::ManifestLayer layer;
  layer.path = layer.block = found.path;
  layer.label = planned.label;
  layer.family = found.family;
  layer.form = found.form;
  layer.num_experts = found.num_experts;
  layer.top_k = found.top_k;
  layer.hidden = found.hidden;
  layer.intermediate = found.intermediate;
  layer.activation = found.activation;
  layer.activation_args = found.activation_args;
  layer.weights_act = found.weights_on_input ? "input" : "after";
  layer.group_attr = planned.Path("group");
  layer.placement_attr = planned.Path("placement");
  layer.placement = planned.placement.experts;
  layer.router = found.router;
  layer.shared_experts = found.shared_experts;
  layer.rebuilt = found.rebuilt;
  for (size_t i = 0; i < planned.tensors.size(); ++i) {
    const ExpertTensor& tensor = planned.tensors[i].tensor;
    layer.tensors.push_back({tensor.role, planned.tensors[i].param, std::string(contract::FindDtype(tensor.dtype)->name),
                             tensor.shape, tensor.requires_grad, tensor.parts, pieces[i]});
  }
  return layer;
}

std::vector<std::string> Limits(const Plan& plan) {
  std::vector<std::string> limits = plan.notes;
  for (const PlannedLayer& planned : plan.layers) {
    for (const std::string& note : planned.layer.notes) {
      limits.push_back(planned.layer.path.empty() ? note : planned.layer.path + ": " + note);
    }
  }
  return limits;
}

// Gives the block the expert weights of `rank`, mapped from its shard.
Status AttachRank(torch::jit::Module& model, const Manifest& manifest, const SafetensorsFile& shard) {
  for (const contract::ManifestLayer& layer : manifest.layers) {
    torch::jit::Module block = *FindModule(model, layer.block);
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      const SafetensorsTensor* stored = shard.Find(tensor.param);
      if (stored == nullptr) return Status(Code::kBug, fmt::format("the shard just written has no '{}'", tensor.param));
      c10::DataPtr data(
          const_cast<char*>(stored->data), new std::shared_ptr<const MappedFile>(shard.file()),
          [](void* keeper) { delete static_cast<std::shared_ptr<const MappedFile>*>(keeper); }, c10::kCPU);
      c10::Storage storage(c10::Storage::use_byte_size_t(), stored->bytes, std::move(data), nullptr, false);
      const at::Tensor old = block.attr(tensor.param.substr(tensor.param.rfind('.') + 1)).toTensor();
      at::Tensor value = at::detail::empty_cpu({0}, old.options());
      value.set_(std::move(storage), 0, stored->shape);
      block.setattr(tensor.param.substr(tensor.param.rfind('.') + 1), value.set_requires_grad(tensor.requires_grad));
    }
  }
  return Status();
}

class Converter {
 public:
  Converter(MoeModel& model, const ConvertOptions& options, StagedDirectory& output)
      : model_(model), options_(options), output_(output) {}

  Result<Converted> Run(const Detection& detection) {
    AUTOEP_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(model_, detection, options_.ep_size));
    AUTOEP_ASSIGN_OR_RETURN(PipelineReport report, RunPipeline(model_, plan, PassOptions()));
    AUTOEP_ASSIGN_OR_RETURN(const Plan done, KeepRewritten(plan, report));
    AUTOEP_ASSIGN_OR_RETURN(const ShardSet shards, WriteShards(done, *model_.archive, output_));
    Describe(done, shards, report.limits);
    AUTOEP_RETURN_IF_ERROR(options_.layout == kPerRank ? WriteRankModels(shards) : WriteSharedModel(shards));
    AUTOEP_RETURN_IF_ERROR(WriteRest(done));
    AUTOEP_RETURN_IF_ERROR(model_.archive->CheckUnchanged());
    return Converted{std::move(manifest_), std::move(report)};
  }

 private:
  PipelineOptions PassOptions() const {
    PipelineOptions options = options_.pipeline;
    if (options_.strip_debug) options.extra.push_back(kStripDebug);
    return options;
  }

  static Result<Plan> KeepRewritten(const Plan& plan, const PipelineReport& report) {
    if (report.rewritten.empty())
      return Status(Code::kNoMoe, "no MoE layer was rewritten: every edit of pass rewrite-moe was left out");
    Plan kept = plan;
    kept.layers.clear();
    for (size_t i : report.rewritten) kept.layers.push_back(plan.layers[i]);
    return kept;
  }

  void Describe(const Plan& plan, const ShardSet& shards, const std::vector<std::string>& limits) {
    manifest_.op_abi = contract::kOpAbi;
    manifest_.tool = options_.tool;
    manifest_.torch = TORCH_VERSION;
    manifest_.layout = options_.layout;
    manifest_.ep_size = plan.ep_size;
    manifest_.plan = plan.digest;
    manifest_.source = {model_.archive->digest(), model_.archive->bytes()};
    for (size_t i = 0; i < plan.layers.size(); ++i) manifest_.layers.push_back(DescribeLayer(plan.layers[i], shards.pieces[i]));
    manifest_.limits = Limits(plan);
    manifest_.limits.insert(manifest_.limits.end(), limits.begin(), limits.end());
  }

  // The copy of the manifest that a model file carries cannot list files: it is part of one.
  Status WriteModelFile(const std::string& name, const std::string& copy) {
    AUTOEP_ASSIGN_OR_RETURN(const auto file, output_.CreateFile(name));
    AUTOEP_RETURN_IF_ERROR(WriteModel(model_.module, {{contract::kManifestName, copy}}, file->Sink()));
    AUTOEP_RETURN_IF_ERROR(file->Finish());
    manifest_.files.push_back({name, static_cast<int64_t>(file->bytes()), file->sha256()});
    return Status();
  }

  Status WriteSharedModel(const ShardSet& shards) {
    AUTOEP_RETURN_IF_ERROR(CheckTensorRecords());
    AUTOEP_RETURN_IF_ERROR(WriteModelFile(contract::kModelName, contract::ToJson(manifest_)));
    manifest_.files.insert(manifest_.files.end(), shards.files.begin(), shards.files.end());
    return Status();
  }

  // The shards serve as the place from which each rank's weights are mapped, and then go.
  Status WriteRankModels(const ShardSet& shards) {
    AUTOEP_RETURN_IF_ERROR(CheckTensorRecords());
    const std::string copy = contract::ToJson(manifest_);
    for (int64_t rank = 0; rank < manifest_.ep_size; ++rank) {
      const std::string path = output_.path() + "/" + shards.files[rank].file;
      AUTOEP_ASSIGN_OR_RETURN(const SafetensorsFile shard, SafetensorsFile::Open(path));
      AUTOEP_RETURN_IF_ERROR(AttachRank(model_.module, manifest_, shard));
      AUTOEP_RETURN_IF_ERROR(WriteModelFile(contract::PerRankModelName(rank, manifest_.ep_size), copy));
      if (const int error = FileSystem::Real().RemoveFile(path)) {
        return Status(Code::kOutput, fmt::format("{}: cannot be removed: {}", path, ErrorText(error)));
      }
    }
    return Status();
  }

  // The records of the tensors that every rank keeps, before they are copied.
  Status CheckTensorRecords() {
    for (const NamedTensor& named : AttributeTensors(model_.module)) {
      AUTOEP_RETURN_IF_ERROR(model_.archive->CheckTensorRecord(named.tensor.storage().data()));
    }
    for (const at::Tensor& constant : GraphConstants(model_.module)) {
      AUTOEP_RETURN_IF_ERROR(model_.archive->CheckTensorRecord(constant.storage().data()));
    }
    return Status();
  }

  Status WriteRest(const Plan& plan) {
    AUTOEP_ASSIGN_OR_RETURN(const auto file, output_.CreateFile(contract::kSkeletonName));
    AUTOEP_RETURN_IF_ERROR(WriteSkeleton(*model_.archive, plan, model_.module, options_.strip_debug, file->Sink()));
    AUTOEP_RETURN_IF_ERROR(file->Finish());
    manifest_.files.push_back({contract::kSkeletonName, static_cast<int64_t>(file->bytes()), file->sha256()});
    const Status valid = contract::CheckManifest(manifest_);
    if (!valid.ok()) return Status(Code::kBug, "the manifest just made breaks its own rules: " + valid.message());
    return output_.WriteFile(contract::kManifestName, contract::ToJson(manifest_));
  }

  MoeModel& model_;
  const ConvertOptions& options_;
  StagedDirectory& output_;
  Manifest manifest_;
};

}  // namespace

Result<Converted> Convert(MoeModel& model, const Detection& detection, const ConvertOptions& options, StagedDirectory& output) {
  if (options.layout != "shared" && options.layout != kPerRank) {
    return Status(Code::kUsage, fmt::format("there is no layout '{}': 'shared' and 'per-rank' are", options.layout));
  }
  return Converter(model, options, output).Run(detection);
}

}  // namespace autoep

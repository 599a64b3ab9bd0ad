// SPDX-License-Identifier: Apache-2.0
// VerifyStructure: the files, the EP ops of each block, and what must no longer be there.
#include <fmt/format.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "passes/model/modules.h"
#include "passes/model/moe_model.h"
#include "plugin/contract/dtype.h"
#include "plugin/contract/shard.h"
#include "plugin/io/files.h"
#include "plugin/io/sha256.h"
#include "plugin/io/text.h"
#include "tools/compare.h"
#include "tools/model_summary.h"
#include "tools/verify.h"
#include "tools/verify_paths.h"

namespace autoep {
namespace {

constexpr uint64_t kHashStep = 16 << 20;

// Operations that only dispatch and expert compute use inside a block.
constexpr std::array<std::string_view, 6> kOldCompute = {"aten::_grouped_mm", "aten::histc",   "aten::index_add",
                                                         "aten::index_add_",  "aten::nonzero", "aten::nonzero_numpy"};
constexpr std::array<std::string_view, 3> kEpOps = {"dispatch", "experts", "combine"};

Status Fail(const std::string& sentence) { return Status(Code::kVerify, sentence); }

Status CheckFile(const std::string& directory, const contract::ManifestFile& listed) {
  AUTOEP_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(directory + "/" + listed.file));
  if (static_cast<int64_t>(file->size()) != listed.bytes) {
    return Fail(fmt::format("{} has {} bytes and the manifest says {}", listed.file, file->size(), listed.bytes));
  }
  Sha256 digest;
  for (uint64_t at = 0; at < file->size(); at += kHashStep) {
    const uint64_t size = std::min(kHashStep, file->size() - at);
    digest.Update(file->data() + at, size);
    file->Forget(at, size);
  }
  if (digest.HexDigest() == listed.sha256) return Status();
  return Fail(
      fmt::format("{} is not the file that was converted: its bytes have another sha256 than the manifest says", listed.file));
}

void FindOldCompute(const torch::jit::Block* block, std::set<std::string>* found) {
  for (const torch::jit::Node* node : block->nodes()) {
    const std::string kind = node->kind().toQualString();
    if (std::find(kOldCompute.begin(), kOldCompute.end(), kind) != kOldCompute.end()) found->insert(kind);
    for (const torch::jit::Block* nested : node->blocks()) FindOldCompute(nested, found);
  }
}

// In all methods of `module` and of the modules below it.
std::set<std::string> OldCompute(const torch::jit::Module& module) {
  std::set<std::string> found;
  for (const torch::jit::Module& inner : module.modules()) {
    for (const torch::jit::Method& method : inner.get_methods()) {
      FindOldCompute(torch::jit::toGraphFunction(method.function()).graph()->block(), &found);
    }
  }
  return found;
}

int64_t CountOf(const ModelSummary& summary, const std::string& block, const std::string& op) {
  const auto ops = summary.ep_ops.find(block);
  if (ops == summary.ep_ops.end()) return 0;
  const auto found = ops->second.find(op);
  return found == ops->second.end() ? 0 : found->second;
}

// Every block has one dispatch, experts and combine a layer, or on one rank a moe in their place, and nothing else has any.
Status CheckOps(const std::string& file, const torch::jit::Module& model, const contract::Manifest& manifest) {
  const ModelSummary summary = Summarize(model);
  std::map<std::string, int64_t> expected;
  for (const contract::ManifestLayer& layer : manifest.layers) ++expected[layer.block];
  for (const auto& [path, ops] : summary.ep_ops) {
    if (!expected.count(path))
      return Fail(fmt::format("{}: {} has EP ops, and the manifest names no layer there", file, LayerName(path)));
  }
  for (const auto& [path, count] : expected) {
    if (manifest.ep_size > 1 && CountOf(summary, path, "moe") > 0) {
      return Fail(
          fmt::format("{}: {} has autoep::moe, which is for one rank, and there are {}", file, LayerName(path), manifest.ep_size));
    }
    const int64_t fused = CountOf(summary, path, manifest.ep_size > 1 ? "moe.ranks" : "moe");
    for (const std::string_view name : kEpOps) {
      const int64_t have = CountOf(summary, path, std::string(name)) + fused;
      if (have == count) continue;
      return Fail(fmt::format("{}: {} has {} autoep::{} and its layers need {}", file, LayerName(path), have, name, count));
    }
    const auto block = FindModule(model, path);
    if (!block) return Fail(fmt::format("{}: there is no module {}", file, LayerName(path)));
    const auto old = OldCompute(*block);
    if (!old.empty()) return Fail(fmt::format("{}: {} still computes with {}", file, LayerName(path), *old.begin()));
  }
  return Status();
}

// The parameter is there, [0, ...] where the shards hold the experts, else with its rank's share.
Status CheckParameter(const std::string& file, const torch::jit::Module& model, const contract::ManifestTensor& tensor,
                      int64_t first) {
  const auto slot = AttributeAt(model, tensor.param);
  if (!slot || !slot->first.attr(slot->second).isTensor())
    return Fail(fmt::format("{} has no parameter '{}'", file, Printable(tensor.param)));
  const at::Tensor parameter = slot->first.attr(slot->second).toTensor();
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = first;
  const auto dtype = contract::FindDtype(tensor.dtype);
  if (parameter.sizes().vec() == shape && dtype && parameter.scalar_type() == dtype->type) return Status();
  return Fail(fmt::format("{}: parameter '{}' is {} [{}], expected {} [{}]", file, Printable(tensor.param),
                          c10::toString(parameter.scalar_type()), fmt::join(parameter.sizes(), ", "), tensor.dtype,
                          fmt::join(shape, ", ")));
}

Status CheckAttributes(const std::string& file, const torch::jit::Module& model, const contract::ManifestLayer& layer) {
  const auto group = AttributeAt(model, layer.group_attr);
  if (!group || !group->first.attr(group->second).isString())
    return Fail(fmt::format("{} has no group name '{}'", file, Printable(layer.group_attr)));
  const auto table = AttributeAt(model, layer.placement_attr);
  if (!table || !table->first.attr(table->second).isTensor()) {
    return Fail(fmt::format("{} has no placement table '{}'", file, Printable(layer.placement_attr)));
  }
  const at::Tensor placement = table->first.attr(table->second).toTensor().to(at::kLong).contiguous();
  const int64_t experts = static_cast<int64_t>(layer.placement.size());
  bool equal = placement.numel() == 2 * experts;
  for (int64_t i = 0; equal && i < experts; ++i) {
    const int64_t* pair = placement.const_data_ptr<int64_t>() + 2 * i;
    equal = pair[0] == layer.placement[i].rank && pair[1] == layer.placement[i].slot;
  }
  return equal ? Status() : Fail(fmt::format("{}: the placement table of {} is not the manifest's", file, LayerName(layer.path)));
}

Status CheckModel(const std::string& directory, const std::string& file, const contract::Manifest& manifest, bool placeholders) {
  AUTOEP_ASSIGN_OR_RETURN(const MoeModel model, OpenModel(directory + "/" + file));
  AUTOEP_RETURN_IF_ERROR(model.archive->CheckAllRecords());
  AUTOEP_RETURN_IF_ERROR(CheckOps(file, model.module, manifest));
  for (const contract::ManifestLayer& layer : manifest.layers) {
    AUTOEP_RETURN_IF_ERROR(CheckAttributes(file, model.module, layer));
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      const int64_t first = placeholders ? 0 : tensor.shape.at(0) / manifest.ep_size;
      AUTOEP_RETURN_IF_ERROR(CheckParameter(file, model.module, tensor, first));
    }
  }
  return Status();
}

// Failures of reading say kInput or kPlugin; to verify they are one thing: the directory is not what was converted.
Status AsVerify(const Status& status) { return status.ok() ? status : Fail(status.message()); }

}  // namespace

Status VerifyStructure(const std::string& directory, const contract::Manifest& manifest, VerifyReport* report) {
  report->ranks = manifest.ep_size;
  report->layers = static_cast<int64_t>(manifest.layers.size());
  for (const contract::ManifestFile& file : manifest.files) {
    AUTOEP_RETURN_IF_ERROR(AsVerify(CheckFile(directory, file)));
    ++report->files;
  }
  if (manifest.layout == "shared") {
    AUTOEP_RETURN_IF_ERROR(AsVerify(CheckModel(directory, contract::kModelName, manifest, true)));
  }
  for (int64_t rank = 0; rank < manifest.ep_size; ++rank) {
    if (manifest.layout == "shared") {
      const auto shard = contract::OpenShard(manifest, directory, rank);
      AUTOEP_RETURN_IF_ERROR(AsVerify(shard.status()));
    } else {
      AUTOEP_RETURN_IF_ERROR(AsVerify(CheckModel(directory, contract::PerRankModelName(rank, manifest.ep_size), manifest, false)));
    }
  }
  return Status();
}

}  // namespace autoep

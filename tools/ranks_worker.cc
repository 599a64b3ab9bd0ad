// SPDX-License-Identifier: Apache-2.0
// The worker's side: loads a model, runs the calls of its job, and hands back outputs, routes, rows and expert bytes.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/csrc/jit/serialization/import.h>
#include <unistd.h>

#include <optional>

#include "passes/model/modules.h"
#include "passes/model/moe_model.h"
#include "plugin/comm/gloo.h"
#include "plugin/contract/shard.h"
#include "plugin/io/files.h"
#include "plugin/io/output.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/text.h"
#include "plugin/load/load.h"
#include "plugin/ops/recorder.h"
#include "tools/inputs_file.h"
#include "tools/ranks.h"
#include "tools/subcommand.h"
#include "tools/verify_paths.h"

namespace autoep {
namespace {

constexpr char kGroup[] = "autoep";
constexpr uint64_t kMaxJob = 64 << 20;

// What went wrong, without the C++ backtrace and without TorchScript's, which ends with "RuntimeError: <sentence>".
std::string Sentence(const std::exception& error) {
  static constexpr std::string_view kMark = "RuntimeError: ";
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error ? torch_error->what_without_backtrace() : error.what();
  const size_t mark = text.rfind(kMark);
  if (mark != std::string::npos) text.erase(0, mark + kMark.size());
  return text.substr(0, text.find('\n'));
}

Status NotThere(const std::string& file, const std::string& what) {
  return Status(Code::kVerify, fmt::format("{} has no '{}', which its manifest names", file, Printable(what)));
}

Status AttachLayer(const contract::ManifestLayer& layer, const std::string& file, const SafetensorsFile* shard,
                   const torch::jit::Module& model) {
  const auto group = AttributeAt(model, layer.group_attr);
  if (!group) return NotThere(file, layer.group_attr);
  torch::jit::Module(group->first).setattr(group->second, std::string(kGroup));
  if (!shard) return Status();
  for (const contract::ManifestTensor& tensor : layer.tensors) {
    const auto slot = AttributeAt(model, tensor.param);
    const SafetensorsTensor* stored = shard->Find(tensor.param);
    if (!slot || !stored) return NotThere(file, tensor.param);
    AUTOEP_ASSIGN_OR_RETURN(const at::Tensor copy, CopyTensor(*stored));
    torch::jit::Module(slot->first).setattr(slot->second, copy);
  }
  return Status();
}

// One block of a converted model, in the memory of that block: model.pt stays mapped, and of the shard only this block's
// tensors are copied.
Result<MoeModel> OpenBlock(const RankJob& job, const contract::Manifest& manifest) {
  const bool shared = manifest.layout == "shared";
  const std::string file = shared ? contract::kModelName : contract::PerRankModelName(job.rank, manifest.ep_size);
  AUTOEP_ASSIGN_OR_RETURN(MoeModel model, OpenModel(job.directory + "/" + file));
  std::optional<SafetensorsFile> shard;
  if (shared) {
    AUTOEP_ASSIGN_OR_RETURN(shard, contract::OpenShard(manifest, job.directory, job.rank));
  }
  for (const contract::ManifestLayer& layer : manifest.layers) {
    if (layer.block == job.block) AUTOEP_RETURN_IF_ERROR(AttachLayer(layer, file, shard ? &*shard : nullptr, model.module));
  }
  const auto block = FindModule(model.module, job.block);
  if (!block) return NotThere(file, job.block);
  model.module = *block;
  return model;
}

// Bytes of the expert tensors that `model` holds, of the layers of `block` or, if that is "", of all.
int64_t ExpertBytes(const contract::Manifest& manifest, const std::string& block, const torch::jit::Module& model) {
  int64_t bytes = 0;
  for (const contract::ManifestLayer& layer : manifest.layers) {
    if (!block.empty() && layer.block != block) continue;
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      const auto slot = AttributeAt(model, block.empty() ? tensor.param : tensor.param.substr(block.size() + 1));
      if (slot && slot->first.attr(slot->second).isTensor()) bytes += slot->first.attr(slot->second).toTensor().nbytes();
    }
  }
  return bytes;
}

// The tensors of a model's result, in order: "0", "1", ... through tuples and lists, the keys of a dict.
void Flatten(const c10::IValue& value, const std::string& key, NamedTensors* outputs) {
  const std::string name = key.empty() ? std::to_string(outputs->size()) : key;
  if (value.isTensor()) {
    outputs->emplace_back(name, value.toTensor());
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) Flatten(element, key, outputs);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) Flatten(element, key, outputs);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict())
      Flatten(entry.value(), entry.key().isString() ? entry.key().toStringRef() : key, outputs);
  } else if (value.isInt() || value.isDouble() || value.isBool()) {
    outputs->emplace_back(name, at::scalar_tensor(value.toScalar()));
  }
}

void TakeCalls(const std::vector<ops::RecordedCall>& calls, RunRecord* record) {
  using Op = ops::RecordedCall::Op;
  for (const ops::RecordedCall& call : calls) {
    if (call.op == Op::kRecordRoutes || call.op == Op::kDispatch) {
      record->routes.push_back({call.layer, call.ids, call.weights});
    } else if (call.op == Op::kExperts) {
      record->rows.push_back({call.layer, call.rows});
    } else if (call.op == Op::kCombine && !record->routes.empty() && record->routes.back().layer == call.layer) {
      record->routes.back().weights = call.weights;
    }
  }
}

RankResult RunCall(torch::jit::Module& module, const NamedTensors& inputs) {
  torch::jit::Kwargs kwargs;
  for (const auto& [name, tensor] : inputs) kwargs.emplace(name, tensor);
  RankResult result;
  const ops::Recorder recorder;
  const c10::IValue output = module.get_method("forward")({}, kwargs);
  Flatten(output, "", &result.record.outputs);
  TakeCalls(recorder.calls(), &result.record);
  return result;
}

class Worker {
 public:
  Status Run(const std::string& job_path) {
    AUTOEP_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(job_path, kMaxJob));
    AUTOEP_ASSIGN_OR_RETURN(const Json json, ParseJson(text, job_path, Code::kBug));
    AUTOEP_ASSIGN_OR_RETURN(job_, RankJob::FromJson(json, job_path));
    try {
      AUTOEP_RETURN_IF_ERROR(Load());
      for (const RankCall& call : job_.calls) AUTOEP_RETURN_IF_ERROR(Run(call));
    } catch (const std::exception& error) {
      return Status(Code::kVerify, Sentence(error));
    }
    return group_ ? group_->Barrier() : Status();
  }

 private:
  Status Load() {
    if (!job_.model.empty()) {
      model_.module = torch::jit::load(job_.model);
      return Status();
    }
    AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, contract::ReadManifest(job_.directory));
    if (!job_.store.empty()) {
      const comm::GlooOptions options{job_.store, job_.rank, job_.ranks, kGroup, std::chrono::seconds(job_.timeout_s)};
      AUTOEP_ASSIGN_OR_RETURN(group_, comm::CreateGlooGroup(options));
    }
    if (job_.block.empty()) {
      AUTOEP_ASSIGN_OR_RETURN(model_.module, TryLoad(job_.directory, LoadOptions{kGroup, job_.rank}));
    } else {
      AUTOEP_ASSIGN_OR_RETURN(model_, OpenBlock(job_, manifest));
    }
    expert_bytes_ = ExpertBytes(manifest, job_.block, model_.module);
    return Status();
  }

  Status Run(const RankCall& call) {
    AUTOEP_ASSIGN_OR_RETURN(const TensorFile inputs, ReadTensors(call.inputs));
    RankResult result;
    try {
      const at::NoGradGuard no_gradients;
      result = RunCall(model_.module, inputs.tensors);
    } catch (const std::exception& error) {
      if (job_.model.empty()) throw;
      result.error = Sentence(error);
    }
    result.expert_bytes = expert_bytes_;
    return WriteRankResult(call.outputs, result);
  }

  RankJob job_;
  std::unique_ptr<comm::GlooGroup> group_;
  MoeModel model_;
  int64_t expert_bytes_ = 0;
};

class RankCommand : public Subcommand {
 public:
  std::string name() const override { return "_rank"; }
  std::string summary() const override { return "One process of run and verify"; }
  std::string group() const override { return kHidden; }
  void Declare(CLI::App& app) override { app.add_option("JOB", job_)->required(); }
  Status Run(Console& console) override {
    const int code = RankMain(job_);
    return code == 0 ? Status() : Status(static_cast<Code>(code), "");
  }

 private:
  std::string job_;
};

const RegisterSubcommand<RankCommand> kRegistered;

}  // namespace

int RankMain(const std::string& job_path) {
  Worker worker;
  const Status status = worker.Run(job_path);
  if (status.ok()) return 0;
  const std::string text = fmt::format("{}\n{}", static_cast<int>(status.code()), status.message());
  const bool written = WriteFileAtomically(RankFailurePath(job_path), text).ok();
  // At once, before the group is left: a peer that finds this rank gone must not be the first to report.
  _exit(static_cast<int>(written ? status.code() : Code::kOutput));
}

}  // namespace autoep

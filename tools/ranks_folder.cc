// SPDX-License-Identifier: Apache-2.0
// The private folder, and the files in it that carry jobs and results.
#include <fmt/format.h>
#include <stdlib.h>
#include <string.h>

#include <filesystem>

#include "plugin/io/files.h"
#include "plugin/io/text.h"
#include "tools/inputs_file.h"
#include "tools/interrupt.h"
#include "tools/ranks.h"

namespace autoep {
namespace {

constexpr int64_t kMaxRanks = 1 << 16;
constexpr char kFacts[] = "facts";  // metadata key: JSON of all that is not a tensor

// Again where a file was made meanwhile: on an interrupt, another thread may still be writing.
void RemoveAll(const std::string& path) {
  std::error_code ignored;
  for (int attempt = 0; attempt < 100 && std::filesystem::exists(path, ignored); ++attempt)
    std::filesystem::remove_all(path, ignored);
}

}  // namespace

struct TempFolder::Undo {
  explicit Undo(const std::string& path) : on_interrupt([path] { RemoveAll(path); }) {}
  OnInterrupt on_interrupt;
};

Result<std::unique_ptr<TempFolder>> TempFolder::Create() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base && *base ? base : "/tmp") + "/autoep-XXXXXX";
  if (!mkdtemp(pattern.data())) {
    return Status(Code::kOutput, fmt::format("no private folder could be made in {}: {}; set TMPDIR to a writable folder",
                                             Printable(std::filesystem::path(pattern).parent_path().string()), strerror(errno)));
  }
  std::unique_ptr<TempFolder> folder(new TempFolder);
  folder->path_ = pattern;
  folder->undo_ = std::make_unique<Undo>(pattern);
  return folder;
}

TempFolder::~TempFolder() { RemoveAll(path_); }

Json RankJob::ToJson() const {
  Json list = Json::array();
  for (const RankCall& call : calls) list.push_back({{"inputs", call.inputs}, {"outputs", call.outputs}});
  return {{"model", model}, {"directory", directory}, {"block", block},         {"rank", rank},
          {"ranks", ranks}, {"store", store},         {"timeout_s", timeout_s}, {"calls", list}};
}

Result<RankJob> RankJob::FromJson(const Json& json, const std::string& where) {
  const JsonValue value(json, where, Code::kBug);
  RankJob job;
  AUTOEP_ASSIGN_OR_RETURN(job.model, value.String("model"));
  AUTOEP_ASSIGN_OR_RETURN(job.directory, value.String("directory"));
  AUTOEP_ASSIGN_OR_RETURN(job.block, value.String("block"));
  AUTOEP_ASSIGN_OR_RETURN(job.ranks, value.Int("ranks", 1, kMaxRanks));
  AUTOEP_ASSIGN_OR_RETURN(job.rank, value.Int("rank", 0, job.ranks - 1));
  AUTOEP_ASSIGN_OR_RETURN(job.store, value.String("store"));
  AUTOEP_ASSIGN_OR_RETURN(job.timeout_s, value.Int("timeout_s", 1, INT32_MAX));
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<JsonValue> calls, value.Array("calls"));
  for (const JsonValue& entry : calls) {
    RankCall call;
    AUTOEP_ASSIGN_OR_RETURN(call.inputs, entry.String("inputs"));
    AUTOEP_ASSIGN_OR_RETURN(call.outputs, entry.String("outputs"));
    job.calls.push_back(std::move(call));
  }
  return job;
}

Status WriteRankResult(const std::string& path, const RankResult& result) {
  TensorFile file;
  Json outputs = Json::array();
  for (const auto& [name, tensor] : result.record.outputs) {
    file.tensors.emplace_back("output:" + name, tensor);
    outputs.push_back(name);
  }
  Json routes = Json::array();
  for (size_t i = 0; i < result.record.routes.size(); ++i) {
    const LayerRoute& route = result.record.routes[i];
    file.tensors.emplace_back(fmt::format("ids:{}", i), route.ids);
    if (route.weights.defined()) file.tensors.emplace_back(fmt::format("weights:{}", i), route.weights);
    routes.push_back(route.layer);
  }
  Json rows = Json::array();
  for (const LayerRows& layer : result.record.rows) rows.push_back({{"layer", layer.layer}, {"rows", layer.rows}});
  const Json facts = {
      {"outputs", outputs}, {"routes", routes}, {"rows", rows}, {"expert_bytes", result.expert_bytes}, {"error", result.error}};
  file.metadata[kFacts] = DumpJson(facts);
  return WriteTensorsTo(path, file);
}

Result<RankResult> ReadRankResult(const std::string& path) {
  AUTOEP_ASSIGN_OR_RETURN(TensorFile file, ReadTensors(path));
  std::map<std::string, at::Tensor> tensors(file.tensors.begin(), file.tensors.end());
  AUTOEP_ASSIGN_OR_RETURN(const Json json, ParseJson(file.metadata[kFacts], path, Code::kBug));
  const JsonValue facts(json, path, Code::kBug);
  RankResult result;
  AUTOEP_ASSIGN_OR_RETURN(result.error, facts.String("error"));
  AUTOEP_ASSIGN_OR_RETURN(result.expert_bytes, facts.Int("expert_bytes", 0, INT64_MAX));
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue output_names, facts.At("outputs"));
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, output_names.AsStrings());
  for (const std::string& name : names) result.record.outputs.emplace_back(name, tensors.at("output:" + name));
  AUTOEP_ASSIGN_OR_RETURN(const JsonValue route_names, facts.At("routes"));
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<std::string> layers, route_names.AsStrings());
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto weights = tensors.find(fmt::format("weights:{}", i));
    result.record.routes.push_back(
        {layers[i], tensors.at(fmt::format("ids:{}", i)), weights == tensors.end() ? at::Tensor() : weights->second});
  }
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<JsonValue> rows, facts.Array("rows"));
  for (const JsonValue& entry : rows) {
    LayerRows layer;
    AUTOEP_ASSIGN_OR_RETURN(layer.layer, entry.String("layer"));
    AUTOEP_ASSIGN_OR_RETURN(layer.rows, entry.Int("rows", 0, INT64_MAX));
    result.record.rows.push_back(std::move(layer));
  }
  return result;
}

}  // namespace autoep

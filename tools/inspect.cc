// SPDX-License-Identifier: Apache-2.0
// autoep inspect: the MoE layers of a model, or why it has none; the EP ops of a converted one. Reads no tensor bytes.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "passes/detect/detect.h"
#include "passes/model/moe_model.h"
#include "passes/rewrite/batch_binding.h"
#include "passes/rewrite/length_binding.h"
#include "plugin/contract/manifest.h"
#include "plugin/contract/placement.h"
#include "plugin/io/json.h"
#include "plugin/io/text.h"
#include "tools/converted_report.h"
#include "tools/layer_report.h"
#include "tools/model_summary.h"
#include "tools/subcommand.h"
#include "tools/table.h"

namespace autoep {
namespace {

struct Unchecked {
  int64_t records = 0;
  int64_t bytes = 0;
};

Unchecked UncheckedTensors(const Archive& archive) {
  Unchecked unchecked;
  for (const ZipRecord& record : archive.zip().records()) {
    if (!Archive::IsTensorRecord(record.name)) continue;
    ++unchecked.records;
    unchecked.bytes += static_cast<int64_t>(record.size);
  }
  return unchecked;
}

std::string UncheckedSentence(const Unchecked& unchecked) {
  return fmt::format("Not checked: the bytes of {} ({}); their CRC is checked when convert or verify reads them.\n",
                     Plural(unchecked.records, "tensor record"), HumanBytes(unchecked.bytes));
}

// The sizes that divide the experts of every layer.
std::vector<int64_t> CommonEpSizes(const std::vector<MoeLayer>& layers) {
  int64_t divisor = 0;
  for (const MoeLayer& layer : layers) divisor = std::gcd(divisor, layer.num_experts);
  return contract::PossibleEpSizes(divisor);
}

// True if `path` is `module` or below it.
bool Covers(const std::string& module, const std::string& path) {
  return module.empty() || path == module || path.starts_with(module + ".");
}

void CollectPaths(const torch::jit::Module& module, const std::string& path, std::vector<std::string>& paths) {
  paths.push_back(path);
  for (const auto& child : module.named_children()) {
    CollectPaths(child.value, path.empty() ? child.name : path + "." + child.name, paths);
  }
}

Status CheckModule(const torch::jit::Module& root, const std::string& path) {
  std::vector<std::string> paths;
  CollectPaths(root, "", paths);
  if (std::find(paths.begin(), paths.end(), path) != paths.end()) return Status();
  return Status(Code::kUsage, fmt::format("--why: the model has no module '{}'{}", Printable(path), DidYouMean(path, paths)));
}

// The manifest's files are there and have its sizes.
Status CheckFiles(const std::string& directory, const contract::Manifest& manifest) {
  for (const contract::ManifestFile& file : manifest.files) {
    std::error_code error;
    const auto size = std::filesystem::file_size(std::filesystem::path(directory) / file.file, error);
    if (!error && static_cast<int64_t>(size) == file.bytes) continue;
    const std::string found = error ? "it is missing" : fmt::format("it has {} bytes", size);
    return Status(Code::kInput, fmt::format("{}: {} should have {} bytes but {}; convert the source again", Printable(directory),
                                            file.file, file.bytes, found));
  }
  return Status();
}

class Inspect : public Subcommand {
 public:
  std::string name() const override { return "inspect"; }
  std::string summary() const override { return "Show the MoE layers of a model, or why there is none"; }
  std::string group() const override { return kInspectGroup; }
  std::string examples() const override {
    return "  autoep inspect mixtral.pt\n"
           "  autoep inspect mixtral.pt --why model.layers.0.mlp\n"
           "  autoep inspect mixtral-ep8        a converted directory\n";
  }

  void Declare(CLI::App& app) override {
    app.add_option("MODEL", path_, "A TorchScript file, or a converted directory")->type_name("FILE|DIR")->required();
    app.add_option("--why", why_, "Explain one module: what was found in it, or which condition failed")->type_name("MODULE");
    AddJsonFlag(app);
  }

  Status Run(Console& console) override {
    if (std::filesystem::is_directory(path_)) return InspectDirectory(console);
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel model, OpenModel(path_));
    const ModelSummary summary = Summarize(model.module);
    if (summary.EpOpCount() > 0) return InspectConverted(model, summary, console);
    const Detection detection = Detect(model.module, {});
    if (!why_.empty()) return Explain(model, detection, why_ == PathName("") ? "" : why_, console);
    if (json()) {
      PrintJson(model, summary, detection, console);
    } else {
      PrintText(model, summary, detection, console);
    }
    return detection.layers.empty() ? NoLayersError(path_, detection.refusals) : Status();
  }

 private:
  void PrintText(const MoeModel& model, const ModelSummary& summary, const Detection& detection, Console& console) {
    console.Print(fmt::format("{}: {}, {}, {} of tensors\n\n", Printable(path_), HumanBytes(model.archive->bytes()),
                              Plural(detection.layers.size(), "MoE layer"), HumanBytes(summary.TensorBytes())));
    if (!detection.layers.empty()) {
      console.Print(LayerTable(detection.layers, console));
      console.Print("\n" + LayerRemarks(detection.layers));
    }
    console.Print(RefusalList(detection.refusals));
    for (const BatchBinding& binding : FindBatchBindings(model.module)) {
      console.Print(
          fmt::format("Bound to a batch of 1 by {}; any length works. Pass widen-batch lifts that.\n", Printable(binding.text)));
    }
    for (const LengthBinding& binding : FindLengthBindings(model.module)) {
      console.Print(fmt::format("Bound to {} by {}.\n", DescribeLengths(binding), Printable(binding.text)));
    }
    console.Print(UncheckedSentence(UncheckedTensors(*model.archive)));
    if (detection.layers.empty()) return;
    std::vector<std::string> sizes;
    for (int64_t size : CommonEpSizes(detection.layers)) sizes.push_back(fmt::to_string(size));
    console.Print(fmt::format("Expert-parallel sizes that work: {}\n", JoinWords(sizes)));
    console.Print(fmt::format("autoep: OK inspect {}, {}, {} of expert weights\n", Plural(detection.layers.size(), "layer"),
                              Plural(TotalExperts(detection.layers), "expert"), HumanBytes(TotalExpertBytes(detection.layers))));
  }

  void PrintJson(const MoeModel& model, const ModelSummary& summary, const Detection& detection, Console& console) {
    Json document = {{"model", path_}, {"source_digest", model.archive->digest()}, {"bytes", model.archive->bytes()}};
    document["tensor_bytes"] = summary.TensorBytes();
    document["layers"] = LayersJson(detection.layers);
    document["refusals"] = RefusalsJson(detection.refusals);
    document["bound_to_batch_1"] = Json::array();
    for (const BatchBinding& binding : FindBatchBindings(model.module)) document["bound_to_batch_1"].push_back(binding.text);
    document["bound_to_lengths"] = Json::array();
    for (const LengthBinding& binding : FindLengthBindings(model.module)) {
      document["bound_to_lengths"].push_back({{"least", binding.least}, {"most", binding.most}, {"node", binding.text}});
    }
    const Unchecked unchecked = UncheckedTensors(*model.archive);
    document["unchecked"] = {{"records", unchecked.records}, {"bytes", unchecked.bytes}};
    if (!detection.layers.empty()) document["ep_sizes"] = CommonEpSizes(detection.layers);
    AddOutcome(detection.layers.empty() ? NoLayersError(path_, detection.refusals) : Status(), document);
    console.Print(DumpJson(document));
  }

  Status Explain(const MoeModel& model, const Detection& detection, const std::string& path, Console& console) const {
    AUTOEP_RETURN_IF_ERROR(CheckModule(model.module, path));
    Detection inside;
    for (const MoeLayer& layer : detection.layers) {
      if (Covers(path, layer.path)) inside.layers.push_back(layer);
    }
    for (const Refusal& refusal : detection.refusals) {
      if (Covers(path, refusal.path)) inside.refusals.push_back(refusal);
    }
    const Status outcome = Outcome(inside, Printable(PathName(path)));
    if (json()) {
      Json document = {{"model", path_}, {"module", path}, {"layers", LayersJson(inside.layers)}};
      document["refusals"] = RefusalsJson(inside.refusals);
      AddOutcome(outcome, document);
      console.Print(DumpJson(document));
      return outcome;
    }
    for (const MoeLayer& layer : inside.layers) {
      console.Print(LayerTable({layer}, console) + "\n" + LayerRemarks({layer}) + "\n");
    }
    console.Print(RefusalList(inside.refusals));
    return outcome;
  }

  static Status Outcome(const Detection& inside, const std::string& module) {
    if (!inside.layers.empty()) return Status();
    if (!inside.refusals.empty()) return Status(Code::kNoMoe, fmt::format("{}: {}", module, inside.refusals.front().predicate));
    return Status(Code::kNoMoe, fmt::format("{}: no router's top-k reaches expert weights in this module", module));
  }

  static void AddOutcome(const Status& outcome, Json& document) {
    if (!outcome.ok()) document["error"] = outcome.message();
    document["status"] = CodeName(outcome.code());
    document["exit_code"] = static_cast<int>(outcome.code());
  }

  Status InspectDirectory(Console& console) {
    AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, contract::ReadManifest(path_));
    AUTOEP_RETURN_IF_ERROR(CheckFiles(path_, manifest));
    const std::string model_name =
        manifest.layout == "per-rank" ? contract::PerRankModelName(0, manifest.ep_size) : contract::kModelName;
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel model, OpenModel((std::filesystem::path(path_) / model_name).string()));
    const ModelSummary summary = Summarize(model.module);
    if (json()) {
      Json document = ConvertedJson(manifest, summary);
      document["model"] = path_;
      document["status"] = CodeName(Code::kOk);
      document["exit_code"] = 0;
      console.Print(DumpJson(document));
      return Status();
    }
    console.Print(fmt::format("{}: converted by {} for {}, layout {}\n\n", Printable(path_), Printable(manifest.tool),
                              Plural(manifest.ep_size, "rank"), manifest.layout));
    console.Print(ConvertedTable(manifest, summary, console) + "\n");
    Table files({{"file"}, {"bytes", Align::kRight}});
    for (const contract::ManifestFile& file : manifest.files) files.AddRow({file.file, HumanBytes(file.bytes)});
    console.Print(files.Render(console) + "\n");
    for (const std::string& limit : manifest.limits) console.Print(fmt::format("Limit: {}\n", Printable(limit)));
    console.Print("Not checked: file digests and tensor bytes; verify checks them.\n");
    console.Print(fmt::format("autoep: OK inspect {}, {}, {} of expert weights a rank\n", Plural(manifest.layers.size(), "layer"),
                              Plural(manifest.ep_size, "rank"), HumanBytes(RankExpertBytes(manifest, 0))));
    return Status();
  }

  // A rewritten model outside its directory: what its graphs say.
  Status InspectConverted(const MoeModel& model, const ModelSummary& summary, Console& console) {
    if (json()) {
      console.Print(DumpJson({{"model", path_},
                              {"ep_ops", summary.ep_ops},
                              {"tensor_bytes", summary.TensorBytes()},
                              {"status", CodeName(Code::kOk)},
                              {"exit_code", 0}}));
      return Status();
    }
    console.Print(fmt::format("{}: {}, already rewritten by autoep\n\n", Printable(path_), HumanBytes(model.archive->bytes())));
    Table table({{"block"}, {"EP ops"}});
    for (const auto& [block, ops] : summary.ep_ops) table.AddRow({PathName(block), OpsText(ops)});
    console.Print(table.Render(console) + "\n");
    console.Print(UncheckedSentence(UncheckedTensors(*model.archive)));
    console.Print(fmt::format("autoep: OK inspect {}, rewritten\n", Plural(summary.ep_ops.size(), "layer")));
    return Status();
  }

  std::string path_;
  std::string why_;
};

const RegisterSubcommand<Inspect> kRegistered;

}  // namespace
}  // namespace autoep

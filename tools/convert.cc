// SPDX-License-Identifier: Apache-2.0
// autoep convert: a TorchScript MoE model becomes a directory that N ranks run. Nothing is published that has not been
// verified, and nothing is left behind by a failure or an interrupt.
#include "passes/convert.h"

#include <fmt/format.h>

#include <cerrno>
#include <memory>
#include <optional>

#include "passes/model/moe_model.h"
#include "passes/repack/plan.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"
#include "tools/arguments.h"
#include "tools/convert_report.h"
#include "tools/converted_report.h"
#include "tools/family_options.h"
#include "tools/interrupt.h"
#include "tools/layer_report.h"
#include "tools/model_summary.h"
#include "tools/pass_options.h"
#include "tools/progress.h"
#include "tools/subcommand.h"
#include "tools/table.h"
#include "tools/verify.h"
#include "tools/version.h"

namespace autoep {
namespace {

// Removes a staging directory that another thread may still be writing to.
void RemoveStaging(const std::string& path) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const int error = RemoveTree(FileSystem::Real(), path);
    if (error == 0 || error == ENOENT) return;
  }
}

std::vector<MoeLayer> LayersOf(const Plan& plan) {
  std::vector<MoeLayer> layers;
  for (const PlannedLayer& planned : plan.layers) layers.push_back(planned.layer);
  return layers;
}

// "0-3", or "0, 2, 5" where a rank's experts are not consecutive.
std::string ExpertsText(const std::vector<int64_t>& experts) {
  const bool consecutive = !experts.empty() && experts.back() - experts.front() + 1 == static_cast<int64_t>(experts.size());
  if (consecutive && experts.size() > 1) return fmt::format("{}-{}", experts.front(), experts.back());
  std::string text;
  for (int64_t expert : experts) text += fmt::format("{}{}", text.empty() ? "" : ", ", expert);
  return text;
}

std::string PlanTable(const Plan& plan, int64_t replicated, const Console& console) {
  Table table(
      {{"rank", Align::kRight}, {"experts of a layer"}, {"expert bytes", Align::kRight}, {"all tensor bytes", Align::kRight}});
  for (int64_t rank = 0; rank < plan.ep_size; ++rank) {
    table.AddRow({fmt::to_string(rank), ExpertsText(plan.layers.front().placement.ExpertsOf(rank)), HumanBytes(plan.RankBytes()),
                  HumanBytes(replicated + plan.RankBytes())});
  }
  return table.Render(console);
}

class ConvertCommand : public Subcommand {
 public:
  std::string name() const override { return "convert"; }
  std::string summary() const override { return "Make a model expert-parallel"; }
  std::string examples() const override {
    return "  autoep convert mixtral.pt --ep-size 8 -o mixtral-ep8\n"
           "  autoep convert mixtral.pt --ep-size 8 --dry-run          what each rank would hold\n"
           "  autoep convert mixtral.pt --ep-size 2 -o out --verify=full\n";
  }

  void Declare(CLI::App& app) override {
    app.add_option("MODEL", path_, "A TorchScript file")->type_name("FILE")->required();
    app.add_option("--ep-size", ep_size_, "Ranks that share the experts")->type_name("N");
    app.add_option("-o,--output", output_, "The directory to make")->type_name("DIR")->group("Output");
    app.add_flag("--overwrite", overwrite_, "Replace a converted directory that is there")->group("Output");
    app.add_option("--layout", options_.layout, "shared (one model and a shard a rank) or per-rank (a whole model a rank)")
        ->type_name("LAYOUT")
        ->group("Output");
    app.add_flag("--strip-debug", options_.strip_debug, "Drop the author's file names and line numbers")->group("Output");
    AddJsonFlag(app);
    family_.Declare(app);
    app.add_option("--device", device_, "any (the result runs wherever it is loaded) or cpu (devices stay as they were traced)")
        ->type_name("DEVICE");
    app.add_option("--router", router_,
                   "route (proved routers become autoep::route), wide (their logits are not rounded; near ties may move) or "
                   "keep (all stay as they are)")
        ->type_name("ROUTER");
    app.add_option("--moe", moe_,
                   "ops (on several ranks a layer is dispatch, experts and combine) or fused (one op with fewer exchanges)")
        ->type_name("MOE");
    app.add_flag("--dry-run", dry_run_, "Plan and print; write nothing");
    app.add_option("--verify", verify_, "full: also run the result on N local processes and compare with the source")
        ->type_name("full");
    passes_.Declare(app);
  }

  Status Run(Console& console) override {
    AUTOEP_RETURN_IF_ERROR(CheckOptions());
    AUTOEP_ASSIGN_OR_RETURN(MoeModel model, OpenModel(path_));
    AUTOEP_ASSIGN_OR_RETURN(const Detection detection, family_.Detect(path_, model));
    AUTOEP_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(model, detection, options_.ep_size));

    BeforeAfter report;
    report.before = Summarize(model.module);
    report.source_bytes = model.archive->bytes();
    report.expert_bytes = TotalExpertBytes(LayersOf(plan));
    if (dry_run_) {
      PrintPlan(plan, detection.refusals, report, console);
      return Status();
    }
    OutputOptions output = Output();
    output.expected_bytes = ExpectedBytes(report);
    std::unique_ptr<StagedDirectory> staged;
    std::optional<OnInterrupt> undo;
    {
      const HoldInterrupts hold;
      AUTOEP_ASSIGN_OR_RETURN(staged, StagedDirectory::Create(output_, output));
      undo.emplace([path = staged->path()] { RemoveStaging(path); });
    }
    AUTOEP_RETURN_IF_ERROR(passes_.MakeDumpFolder());
    AUTOEP_RETURN_IF_ERROR(WriteAndVerify(model, detection, *staged, report, console));
    {
      const HoldInterrupts hold;
      AUTOEP_RETURN_IF_ERROR(staged->Publish());
    }
    for (const Refusal& refusal : detection.refusals) console.Warning("left as it was: " + RefusalSentence(refusal));
    PrintReport(plan, detection.refusals, report, console);
    return Status();
  }

 private:
  Status CheckOptions() {
    AUTOEP_RETURN_IF_ERROR(CheckChoice("--layout", options_.layout, {"shared", "per-rank"}));
    if (!verify_.empty()) AUTOEP_RETURN_IF_ERROR(CheckChoice("--verify", verify_, {"full"}));
    AUTOEP_RETURN_IF_ERROR(family_.Resolve());
    AUTOEP_RETURN_IF_ERROR(ChooseEpSize());
    if (output_.empty() && !dry_run_) return Status(Code::kUsage, "-o is needed: the directory to make (or --dry-run)");
    AUTOEP_ASSIGN_OR_RETURN(options_.pipeline, passes_.Resolve());
    AUTOEP_RETURN_IF_ERROR(CheckChoice("--device", device_, {"any", "cpu"}));
    AUTOEP_RETURN_IF_ERROR(CheckChoice("--router", router_, {"route", "wide", "keep"}));
    if (router_ == "keep") options_.pipeline.disabled.push_back({"fuse-router", std::nullopt});
    if (router_ == "wide") options_.pipeline.extra.push_back("widen-logits");
    AUTOEP_RETURN_IF_ERROR(CheckChoice("--moe", moe_, {"ops", "fused"}));
    if (moe_ == "fused") options_.pipeline.extra.push_back("fuse-ranks");
    if (device_ == "cpu") options_.pipeline.disabled.push_back({"follow-device", std::nullopt});
    options_.tool = kToolName;
    return output_.empty() ? Status() : CheckOutput(output_, OutputKind::kDirectory, Output());
  }

  Status ChooseEpSize() {
    if (ep_size_.empty() && family_.ep_size()) {
      options_.ep_size = *family_.ep_size();
      return Status();
    }
    if (ep_size_.empty()) return Status(Code::kUsage, "--ep-size is required (or autoep_size in the file of --config)");
    AUTOEP_ASSIGN_OR_RETURN(options_.ep_size, ParseWhole("--ep-size", ep_size_, 1));
    return Status();
  }

  OutputOptions Output() const {
    OutputOptions output;
    output.overwrite = overwrite_;
    output.inputs = {path_};
    return output;
  }

  // What the files will hold, for the check of the disk's room.
  uint64_t ExpectedBytes(const BeforeAfter& report) const {
    const int64_t copies = options_.layout == "per-rank" ? options_.ep_size : 1;
    return static_cast<uint64_t>((report.before.TensorBytes() - report.expert_bytes) * copies + report.expert_bytes);
  }

  Status WriteAndVerify(MoeModel& model, const Detection& detection, StagedDirectory& staged, BeforeAfter& report,
                        Console& console) const {
    {
      Progress progress(console, "converting", report.source_bytes);
      progress.Update(0);
      AUTOEP_ASSIGN_OR_RETURN(Converted converted, Convert(model, detection, options_, staged));
      report.manifest = std::move(converted.manifest);
      report.limits = std::move(converted.passes.limits);
      report.expert_bytes = TotalExpertBytes(report.manifest);  // without layers that --disable-pass left alone
      report.after = Summarize(model.module);
    }
    Progress progress(console, "verifying", report.source_bytes);
    progress.Update(0);
    VerifyReport verified;
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel source, OpenModel(path_));
    AUTOEP_RETURN_IF_ERROR(VerifyStructure(staged.path(), report.manifest, &verified));
    AUTOEP_RETURN_IF_ERROR(VerifyBytes(source, staged.path(), report.manifest, &verified));
    if (verify_.empty()) return Status();
    return VerifyNumbers(path_, staged.path(), report.manifest, {}, &verified);
  }

  void PrintLayers(const Plan& plan, const std::vector<Refusal>& refusals, Console& console) const {
    const std::vector<MoeLayer> layers = LayersOf(plan);
    console.Print(LayerTable(layers, console) + "\n" + LayerRemarks(layers));
    for (const std::string& note : plan.notes) console.Print(fmt::format("Note: {}\n", Printable(note)));
    console.Print(RefusalList(refusals) + "\n");
  }

  void PrintPlan(const Plan& plan, const std::vector<Refusal>& refusals, const BeforeAfter& report, Console& console) const {
    const int64_t replicated = report.before.TensorBytes() - report.expert_bytes;
    if (json()) {
      console.Print(DumpJson({{"layers", LayersJson(LayersOf(plan))},
                              {"refusals", RefusalsJson(refusals)},
                              {"ep_size", plan.ep_size},
                              {"plan", plan.digest},
                              {"expert_bytes_a_rank", plan.RankBytes()},
                              {"replicated_bytes", replicated},
                              {"notes", plan.notes},
                              {"dry_run", true},
                              {"status", CodeName(Code::kOk)},
                              {"exit_code", 0}}));
      return;
    }
    PrintLayers(plan, refusals, console);
    console.Print(PlanTable(plan, replicated, console) + "\n");
    console.Print(fmt::format("autoep: OK convert --dry-run {}, {} -> {}, {} of experts a rank, plan {}\n",
                              Plural(plan.layers.size(), "layer"), Plural(TotalExperts(LayersOf(plan)), "expert"),
                              Plural(plan.ep_size, "rank"), HumanBytes(plan.RankBytes()), plan.digest.substr(0, 12)));
  }

  void PrintReport(const Plan& plan, const std::vector<Refusal>& refusals, const BeforeAfter& report, Console& console) const {
    if (json()) {
      Json document = BeforeAfterJson(report);
      document["output"] = output_;
      document["refusals"] = RefusalsJson(refusals);
      document["notes"] = plan.notes;
      document["status"] = CodeName(Code::kOk);
      document["exit_code"] = 0;
      console.Print(DumpJson(document));
      return;
    }
    PrintLayers(plan, refusals, console);
    for (const std::string& limit : report.limits) console.Print(fmt::format("Limit: {}\n\n", Printable(limit)));
    console.Print(BeforeAfterTable(report, console) + "\n");
    console.Print(fmt::format("Written to {}: {}\n", Printable(output_), Plural(report.manifest.files.size() + 1, "file")));
    console.Print(fmt::format("autoep: OK convert {}\n", ConvertedSentence(report.manifest)));
  }

  std::string path_;
  std::string ep_size_;
  std::string output_;
  FamilyOptions family_;
  std::string verify_;
  std::string device_ = "any";
  std::string router_ = "route";
  std::string moe_ = "ops";
  bool overwrite_ = false;
  bool dry_run_ = false;
  ConvertOptions options_;
  PassOptions passes_;
};

const RegisterSubcommand<ConvertCommand> kRegistered;

}  // namespace
}  // namespace autoep

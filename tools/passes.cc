// SPDX-License-Identifier: Apache-2.0
// autoep passes: lists the passes, or runs chosen ones on a model, to see what each does.
#include <fmt/format.h>

#include <chrono>

#include "passes/detect/detect.h"
#include "passes/model/moe_model.h"
#include "passes/pipeline.h"
#include "passes/repack/plan.h"
#include "plugin/io/json.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"
#include "tools/arguments.h"
#include "tools/interrupt.h"
#include "tools/layer_report.h"
#include "tools/pass_options.h"
#include "tools/subcommand.h"
#include "tools/table.h"

namespace autoep {
namespace {

class Passes : public Subcommand {
 public:
  std::string name() const override { return "passes"; }
  std::string summary() const override { return "List the passes, or run some on a model"; }
  std::string group() const override { return kInspectGroup; }
  std::string examples() const override {
    return "  autoep passes list\n"
           "  autoep passes run mixtral.pt --passes rewrite-moe -o rewritten.pt --dump-ir graphs\n";
  }

  void Declare(CLI::App& app) override {
    app.require_subcommand(1);
    list_ = app.add_subcommand("list", "The passes in their order");
    run_ = app.add_subcommand("run", "Run passes and save the model: for looking at, it has no expert weights");
    run_->add_option("MODEL", path_, "A TorchScript file")->type_name("FILE")->required();
    run_->add_option("--passes", names_, "Passes in the order to run; by default those that convert runs")->type_name("A,B");
    run_->add_option("--ep-size", ep_size_, "Ranks to rewrite for, by default 1")->type_name("N");
    run_->add_option("-o,--output", output_, "The file to make")->type_name("FILE")->required();
    run_->add_flag("--overwrite", overwrite_, "Replace a file that is there");
    options_.Declare(*run_);
    AddJsonFlag(app);
  }

  Status Run(Console& console) override { return list_->parsed() ? List(console) : RunPasses(console); }

 private:
  Status List(Console& console) const {
    if (json()) {
      Json rows = Json::array();
      for (const PassInfo& pass : ListPasses()) {
        rows.push_back({{"name", pass.name}, {"summary", pass.summary}, {"by_default", pass.by_default}});
      }
      console.Print(DumpJson({{"passes", rows}, {"status", CodeName(Code::kOk)}, {"exit_code", 0}}));
      return Status();
    }
    Table table({{"pass"}, {"by default"}, {"what it does"}});
    for (const PassInfo& pass : ListPasses()) table.AddRow({pass.name, pass.by_default ? "yes" : "no", pass.summary});
    console.Print(table.Render(console));
    return Status();
  }

  Status RunPasses(Console& console) const {
    AUTOEP_ASSIGN_OR_RETURN(PipelineOptions options, options_.Resolve());
    options.passes = SplitCommas(names_);
    AUTOEP_RETURN_IF_ERROR(CheckPassNames(options.passes));
    AUTOEP_ASSIGN_OR_RETURN(const int64_t ep_size, ParseWhole("--ep-size", ep_size_, 1));
    OutputOptions output;
    output.overwrite = overwrite_;
    output.inputs = {path_};
    AUTOEP_RETURN_IF_ERROR(CheckOutput(output_, OutputKind::kFile, output));
    AUTOEP_ASSIGN_OR_RETURN(MoeModel model, OpenModel(path_));
    const auto begin = std::chrono::steady_clock::now();
    const Detection detection = Detect(model.module, {});
    const std::chrono::duration<double> detect = std::chrono::steady_clock::now() - begin;
    if (detection.layers.empty()) return NoLayersError(path_, detection.refusals);
    AUTOEP_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(model, detection, ep_size));
    AUTOEP_RETURN_IF_ERROR(options_.MakeDumpFolder());
    AUTOEP_ASSIGN_OR_RETURN(const PipelineReport report, RunPipeline(model, plan, options));
    const HoldInterrupts hold;
    AUTOEP_ASSIGN_OR_RETURN(const std::unique_ptr<StagedFile> file, StagedFile::Create(output_, output));
    AUTOEP_RETURN_IF_ERROR(WriteModel(model.module, {}, file->file().Sink()));
    AUTOEP_RETURN_IF_ERROR(file->Publish());
    PrintReport(report, detect.count(), console);
    return Status();
  }

  void PrintReport(const PipelineReport& report, double detect_seconds, Console& console) const {
    int64_t edits = 0;
    Json rows = Json::array();
    std::string text;
    for (const PassReport& pass : report.passes) {
      edits += static_cast<int64_t>(pass.edits.size());
      rows.push_back(
          {{"pass", pass.pass}, {"edits", pass.edits}, {"seconds", pass.seconds}, {"check_seconds", pass.check_seconds}});
      text += fmt::format("{}: {}\n", pass.pass, Plural(pass.edits.size(), "edit"));
      for (const std::string& edit : pass.edits) text += fmt::format("  {}\n", Printable(edit));
    }
    if (json()) {
      console.Print(DumpJson({{"passes", rows},
                              {"detect_seconds", detect_seconds},
                              {"output", output_},
                              {"status", CodeName(Code::kOk)},
                              {"exit_code", 0}}));
      return;
    }
    console.Print(text);
    console.Print(fmt::format("autoep: OK passes run {}, {}\n", Plural(report.passes.size(), "pass"), Plural(edits, "edit")));
  }

  CLI::App* list_ = nullptr;
  CLI::App* run_ = nullptr;
  std::string path_;
  std::string names_;
  std::string output_;
  std::string ep_size_ = "1";
  bool overwrite_ = false;
  PassOptions options_;
};

const RegisterSubcommand<Passes> kRegistered;

}  // namespace
}  // namespace autoep

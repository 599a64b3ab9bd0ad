// SPDX-License-Identifier: Apache-2.0
// autoep run DIR --inputs FILE -o FILE: a converted directory on all its ranks, as local processes.
#include <fmt/format.h>

#include "passes/model/moe_model.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"
#include "tools/inputs_file.h"
#include "tools/ranks.h"
#include "tools/subcommand.h"

namespace autoep {
namespace {

class RunCommand : public Subcommand {
 public:
  std::string name() const override { return "run"; }
  std::string summary() const override { return "Run a converted directory on all its ranks, as local processes"; }
  std::string examples() const override {
    return "  autoep run mixtral-ep2 --inputs tokens.safetensors -o logits.safetensors\n"
           "  autoep run mixtral-ep2 --inputs tokens-{rank}.safetensors -o logits-{rank}.safetensors\n";
  }

  void Declare(CLI::App& app) override {
    app.add_option("DIR", directory_, "The converted directory")->required();
    app.add_option(
           "--inputs", inputs_,
           "Tensors keyed by argument name. Every rank is given the whole file; '{rank}' in the name gives each a file of its own")
        ->required()
        ->type_name("FILE.safetensors");
    app.add_option(
           "-o,--output", output_,
           "What rank 0 returns, as output.0, output.1, ... or output.<key>; with '{rank}' in the name a file for every rank")
        ->required()
        ->type_name("FILE.safetensors");
    app.add_option("--ep-size", ep_size_, "Must be the directory's, if given")->type_name("N");
    app.add_option("--timeout", timeout_s_, "Seconds that the run may take")->check(CLI::PositiveNumber)->type_name("S");
    app.add_flag("--overwrite", overwrite_, "Replace the output if it is there");
    AddJsonFlag(app);
  }

  Status Run(Console& console) override {
    AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, contract::ReadManifest(directory_));
    if (ep_size_ != 0 && ep_size_ != manifest.ep_size) {
      return Status(Code::kUsage, fmt::format("--ep-size {}: {} was converted for {}; use that, or convert again", ep_size_,
                                              Printable(directory_), Plural(manifest.ep_size, "rank")));
    }
    const int64_t ranks = manifest.ep_size;
    for (int64_t rank = 0; rank < Written(ranks); ++rank) {
      AUTOEP_RETURN_IF_ERROR(CheckOutput(RankPath(output_, rank), OutputKind::kFile, Options(rank)));
    }
    AUTOEP_RETURN_IF_ERROR(CheckInputs(manifest));
    AUTOEP_ASSIGN_OR_RETURN(const auto folder, TempFolder::Create());
    const Status run = RunJobs(Jobs(ranks, *folder), *folder, {"/proc/self/exe", timeout_s_});
    // Nothing was verified: what the model throws is a failure at run time.
    if (!run.ok()) return run.code() == Code::kVerify ? Status(Code::kPlugin, run.message()) : run;
    int64_t tensors = 0;
    for (int64_t rank = 0; rank < Written(ranks); ++rank) {
      AUTOEP_ASSIGN_OR_RETURN(const RankResult result, ReadRankResult(ResultFile(*folder, rank)));
      AUTOEP_RETURN_IF_ERROR(WriteOutputs(rank, result));
      tensors = static_cast<int64_t>(result.record.outputs.size());
    }
    Print(ranks, tensors, console);
    return Status();
  }

 private:
  // Ranks whose output is written: all of them, or rank 0 where one file is named.
  int64_t Written(int64_t ranks) const { return RankPath(output_, 0) == output_ ? 1 : ranks; }

  static std::string ResultFile(const TempFolder& folder, int64_t rank) {
    return folder.File(fmt::format("result-{}.safetensors", rank));
  }

  OutputOptions Options(int64_t rank) const {
    OutputOptions options;
    options.overwrite = overwrite_;
    options.inputs = {directory_, RankPath(inputs_, rank)};
    return options;
  }

  // Before any process is started: every file is there, and keyed by the model's arguments.
  Status CheckInputs(const contract::Manifest& manifest) const {
    const bool shared = manifest.layout == "shared";
    const std::string file = shared ? contract::kModelName : contract::PerRankModelName(0, manifest.ep_size);
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel model, OpenModel(directory_ + "/" + file));
    const ArgumentNames arguments = ArgumentsOf(model.module);
    for (int64_t rank = 0; rank < manifest.ep_size; ++rank) {
      const std::string path = RankPath(inputs_, rank);
      if (rank > 0 && path == inputs_) break;
      AUTOEP_ASSIGN_OR_RETURN(const TensorFile given, ReadTensors(path));
      AUTOEP_RETURN_IF_ERROR(OrderInputs(given.tensors, arguments, Printable(path)).status());
    }
    return Status();
  }

  std::vector<RankJob> Jobs(int64_t ranks, const TempFolder& folder) const {
    std::vector<RankJob> jobs(ranks);
    for (int64_t rank = 0; rank < ranks; ++rank) {
      jobs[rank].directory = directory_;
      jobs[rank].rank = rank;
      jobs[rank].ranks = ranks;
      jobs[rank].store = ranks > 1 ? folder.File("store") : "";
      jobs[rank].timeout_s = timeout_s_;
      jobs[rank].calls = {{RankPath(inputs_, rank), ResultFile(folder, rank)}};
    }
    return jobs;
  }

  Status WriteOutputs(int64_t rank, const RankResult& result) const {
    TensorFile file;
    for (const auto& [name, tensor] : result.record.outputs) file.tensors.emplace_back("output." + name, tensor);
    AUTOEP_ASSIGN_OR_RETURN(const auto staged, StagedFile::Create(RankPath(output_, rank), Options(rank)));
    AUTOEP_RETURN_IF_ERROR(WriteTensors(file, staged->file().Sink()));
    return staged->Publish();
  }

  void Print(int64_t ranks, int64_t tensors, Console& console) const {
    if (json()) {
      console.Print(DumpJson({{"ranks", ranks}, {"outputs", tensors}, {"status", CodeName(Code::kOk)}, {"exit_code", 0}}));
      return;
    }
    console.Print(
        fmt::format("autoep: OK run {}, {} -> {}\n", Plural(ranks, "rank"), Plural(tensors, "output"), Printable(output_)));
  }

  std::string directory_;
  std::string inputs_;
  std::string output_;
  int64_t ep_size_ = 0;
  int64_t timeout_s_ = 1800;
  bool overwrite_ = false;
};

const RegisterSubcommand<RunCommand> kRegistered;

}  // namespace
}  // namespace autoep

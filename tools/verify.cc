// SPDX-License-Identifier: Apache-2.0
// autoep verify DIR --source MODEL.pt: is the converted directory the source, expert-parallel?
#include "tools/verify.h"

#include <fmt/format.h>

#include <algorithm>

#include "plugin/io/text.h"
#include "tools/progress.h"
#include "tools/subcommand.h"
#include "tools/table.h"

namespace autoep {
namespace {

template <typename T, typename Field>
auto SumOf(const std::vector<T>& items, Field field) {
  int64_t sum = 0;
  for (const T& item : items) sum += item.*field;
  return sum;
}

std::string CaseTable(const VerifyReport& report, const Console& console) {
  Table table({{"compared"},
               {"tokens", Align::kRight},
               {"flips", Align::kRight},
               {"after flips", Align::kRight},
               {"max error", Align::kRight},
               {"allowed", Align::kRight}});
  for (const VerifyCase& one : report.cases) {
    table.AddRow({one.name, std::to_string(one.tokens), std::to_string(one.flips), std::to_string(one.after_flips),
                  fmt::format("{:.2e}", one.max_error), fmt::format("{:.0e}", one.tolerance)});
  }
  return table.Render(console);
}

std::string RankTable(const VerifyReport& report, const Console& console) {
  Table table({{"rank", Align::kRight}, {"expert bytes", Align::kRight}, {"rows processed", Align::kRight}});
  for (size_t rank = 0; rank < report.rank_bytes.size(); ++rank) {
    table.AddRow({std::to_string(rank), HumanBytes(report.rank_bytes[rank]), std::to_string(report.rank_rows[rank])});
  }
  return table.Render(console);
}

class Verify : public Subcommand {
 public:
  std::string name() const override { return "verify"; }
  std::string summary() const override { return "Compare a converted directory with its source: structure, bytes, numbers"; }
  std::string examples() const override {
    return "  autoep verify mixtral-ep2 --source mixtral.pt\n"
           "  autoep verify mixtral-ep2 --source mixtral.pt --inputs tokens-{rank}.safetensors\n"
           "  autoep verify mixtral-ep64 --source mixtral.pt --blocks       in the memory of one block\n";
  }

  void Declare(CLI::App& app) override {
    app.add_option("DIR", directory_, "The converted directory")->required();
    app.add_option("--source", source_, "The TorchScript file it was converted from")->required()->type_name("MODEL.pt");
    app.add_option(
           "--inputs", options_.inputs,
           "Inputs keyed by argument name, instead of inferred ones; '{rank}' in the name gives each rank a file of its own")
        ->type_name("FILE.safetensors");
    app.add_flag("--blocks", options_.blocks, "Run each MoE block alone on made hidden states, in the memory of one block");
    app.add_option("--seed", options_.seed, "Seed of the made inputs")->type_name("N");
    app.add_option("--timeout", options_.timeout_s, "Seconds that one run of all ranks may take")
        ->check(CLI::PositiveNumber)
        ->type_name("S");
    AddJsonFlag(app);
  }

  Status Run(Console& console) override {
    if (options_.blocks && !options_.inputs.empty()) {
      return Status(Code::kUsage, "--blocks makes the hidden states of each block itself: leave out --inputs");
    }
    AUTOEP_ASSIGN_OR_RETURN(const contract::Manifest manifest, contract::ReadManifest(directory_));
    AUTOEP_ASSIGN_OR_RETURN(const MoeModel source, OpenModel(source_));
    VerifyReport report;
    console.Note("structure: files, ops, shards");
    AUTOEP_RETURN_IF_ERROR(VerifyStructure(directory_, manifest, &report));
    console.Note("bytes: every expert byte of the source");
    AUTOEP_RETURN_IF_ERROR(VerifyBytes(source, directory_, manifest, &report));
    console.Note(fmt::format("numbers: the source, and {} on this machine", Plural(manifest.ep_size, "rank")));
    AUTOEP_RETURN_IF_ERROR(VerifyNumbers(source_, directory_, manifest, options_, &report));
    Print(report, console);
    return Status();
  }

 private:
  void Print(const VerifyReport& report, Console& console) const {
    if (json()) {
      Json document = report.ToJson();
      document["status"] = CodeName(Code::kOk);
      document["exit_code"] = 0;
      console.Print(DumpJson(document));
      return;
    }
    console.Print(
        fmt::format("structure  {}, {} with their EP ops\n", Plural(report.files, "file"), Plural(report.layers, "layer")));
    console.Print(fmt::format("bytes      {} of experts, each byte found once; {} equal\n\n", HumanBytes(report.expert_bytes),
                              Plural(report.replicated_tensors, "replicated tensor")));
    console.Print(CaseTable(report, console) + "\n" + RankTable(report, console) + "\n");
    for (const std::string& note : report.notes) console.Print("note: " + note + "\n");
    console.Print(fmt::format("autoep: OK verify {}, {}, {}, {}, max error {:.1e}\n", Plural(report.layers, "layer"),
                              Plural(report.ranks, "rank"), Plural(report.Tokens(), "token"), Plural(report.Flips(), "flip"),
                              report.MaxError()));
  }

  std::string directory_;
  std::string source_;
  VerifyOptions options_;
};

const RegisterSubcommand<Verify> kRegistered;

}  // namespace

int64_t VerifyReport::Tokens() const { return SumOf(cases, &VerifyCase::tokens); }
int64_t VerifyReport::Flips() const { return SumOf(cases, &VerifyCase::flips); }

double VerifyReport::MaxError() const {
  double max = 0;
  for (const VerifyCase& one : cases) max = std::max(max, one.max_error);
  return max;
}

Json VerifyReport::ToJson() const {
  Json rows = Json::array();
  for (const VerifyCase& one : cases) {
    rows.push_back({{"name", one.name},
                    {"tokens", one.tokens},
                    {"flips", one.flips},
                    {"after_flips", one.after_flips},
                    {"max_error", one.max_error},
                    {"tolerance", one.tolerance}});
  }
  return {{"ranks", ranks},
          {"layers", layers},
          {"files", files},
          {"replicated_tensors", replicated_tensors},
          {"expert_bytes", expert_bytes},
          {"bytes_proved", bytes_proved},
          {"blocks", blocks},
          {"rank_expert_bytes", rank_bytes},
          {"rank_rows", rank_rows},
          {"cases", rows},
          {"tokens", Tokens()},
          {"flips", Flips()},
          {"max_error", MaxError()},
          {"notes", notes}};
}

}  // namespace autoep

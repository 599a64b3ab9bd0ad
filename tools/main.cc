// SPDX-License-Identifier: Apache-2.0
// The command line `autoep`: parses, runs one subcommand, and turns its Status into text and an exit code.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "plugin/contract/schemas.h"
#include "plugin/io/json.h"
#include "tools/arguments.h"
#include "tools/console.h"
#include "tools/exit_codes.h"
#include "tools/interrupt.h"
#include "tools/subcommand.h"
#include "tools/version.h"

namespace autoep {
namespace {

constexpr char kDescription[] =
    "Makes saved TorchScript Mixture-of-Experts models expert-parallel: the MoE blocks run on custom ops, and each rank\n"
    "holds its slice of the experts.";

constexpr char kExamples[] =
    "Examples:\n"
    "  autoep inspect mixtral.pt                              what is in the file\n"
    "  autoep convert mixtral.pt --ep-size 8 -o mixtral-ep8   one shard a rank\n"
    "  autoep verify mixtral-ep8 --source mixtral.pt          the same numbers, on real processes\n\n";

struct GlobalOptions {
  std::string color = "auto";
  bool quiet = false;
};

struct CommandLine {
  CLI::App app{kDescription, "autoep"};
  GlobalOptions globals;
  std::vector<std::unique_ptr<Subcommand>> commands;
};

std::string VersionText() { return fmt::format("{} (op ABI {})", kToolName, contract::kOpAbi); }

std::unique_ptr<CommandLine> BuildCommandLine() {
  auto line = std::make_unique<CommandLine>();
  CLI::App& app = line->app;
  app.set_version_flag("--version", VersionText());
  app.set_help_flag("-h,--help", "Print this help");
  app.add_option("--color", line->globals.color, "auto, always or never")->type_name("WHEN");
  app.add_flag("-q,--quiet", line->globals.quiet, "No progress and no notes on stderr");
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(kExamples + ExitCodeHelp());
  line->commands = MakeSubcommands();
  for (const auto& command : line->commands) {
    CLI::App* sub = app.add_subcommand(command->name(), command->summary())->group(command->group());
    command->Declare(*sub);
    if (!command->examples().empty()) sub->footer("Examples:\n" + command->examples());
  }
  return line;
}

Status ApplyGlobals(const GlobalOptions& globals, Console& console) {
  AUTOEP_RETURN_IF_ERROR(CheckChoice("--color", globals.color, {"auto", "always", "never"}));
  console.SetColor(globals.color == "auto" ? When::kAuto : globals.color == "always" ? When::kAlways : When::kNever);
  console.SetQuiet(globals.quiet);
  return Status();
}

// Parses; the subcommand to run, or null after --help and --version.
Result<Subcommand*> Parse(CommandLine& line, std::vector<std::string> words, Console& console) {
  if (words.empty()) {
    console.Note(line.app.help());
    return Status(Code::kUsage, "a subcommand is needed");
  }
  AUTOEP_RETURN_IF_ERROR(CheckWords(line.app, words));
  std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
  try {
    line.app.parse(words);
  } catch (const CLI::Success& success) {
    line.app.exit(success);
    return nullptr;
  } catch (const CLI::ParseError& error) {
    return Status(Code::kUsage, error.what());
  }
  AUTOEP_RETURN_IF_ERROR(ApplyGlobals(line.globals, console));
  for (const auto& command : line.commands) {
    if (line.app.got_subcommand(command->name())) return command.get();
  }
  return Status(Code::kBug, "no subcommand was parsed");
}

Status RunGuarded(Subcommand& command, Console& console) {
  try {
    return command.Run(console);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return Status(Code::kBug, error.what());
  }
}

void Report(const Status& status, bool json, Console& console) {
  if (status.ok() || status.message().empty()) return;
  if (json && !console.printed()) {
    console.Print(DumpJson({{"status", CodeName(status.code())},
                            {"exit_code", static_cast<int>(status.code())},
                            {"error", status.message()}}));
  }
  console.Error(status.message());
  if (status.code() == Code::kBug) {
    console.Note("This is a fault of autoep itself. Please report it with the command line and this output: " + VersionText());
  }
}

int Main(const std::vector<std::string>& words) {
  Console console;
  const auto line = BuildCommandLine();
  Result<Subcommand*> command = Parse(*line, words, console);
  Status status = command.status();
  bool json = false;
  if (command.ok() && *command) {
    json = (*command)->json();
    status = RunGuarded(**command, console);
  }
  Report(status, json, console);
  const Status finished = console.Finish();
  if (status.ok() && !finished.ok()) {
    status = finished;
    console.Error(status.message());
  }
  return static_cast<int>(status.code());
}

}  // namespace
}  // namespace autoep

int main(int argc, char** argv) {
  // Both then come back from write as errors, which have sentences and are cleaned up after.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  autoep::StartInterruptHandling();
  return autoep::Main(std::vector<std::string>(argv + 1, argv + argc));
}

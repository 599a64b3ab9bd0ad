// SPDX-License-Identifier: Apache-2.0
// Parsing of the pass options.
#include "tools/pass_options.h"

#include <fmt/format.h>

#include <filesystem>

#include "plugin/io/text.h"
#include "tools/arguments.h"

namespace autoep {
void PassOptions::Declare(CLI::App& app) {
  app.add_option("--disable-pass", disabled_, "Leave out a pass, or only its edit K (from 0); may be repeated")
      ->type_name("NAME[:K]")
      ->take_all()
      ->expected(1)
      ->group("Passes");
  app.add_option("--pass-limit", limit_, "Make no more than N edits, of all passes together")->type_name("N")->group("Passes");
  app.add_option("--dump-ir", dump_ir_, "Write the graphs before the first pass and after each")->type_name("DIR")->group("Passes");
}

Result<PipelineOptions> PassOptions::Resolve() const {
  PipelineOptions options;
  for (const std::string& text : disabled_) {
    AUTOEP_ASSIGN_OR_RETURN(DisabledPass disabled, ParseDisabledPass(text));
    options.disabled.push_back(std::move(disabled));
  }
  if (!limit_.empty()) {
    AUTOEP_ASSIGN_OR_RETURN(options.limit, ParseWhole("--pass-limit", limit_, 0));
  }
  options.dump_ir = dump_ir_;
  return options;
}

Status PassOptions::MakeDumpFolder() const {
  if (dump_ir_.empty()) return Status();
  std::error_code error;
  std::filesystem::create_directories(dump_ir_, error);
  if (!error && std::filesystem::is_directory(dump_ir_, error)) return Status();
  return Status(Code::kOutput, fmt::format("--dump-ir: {} cannot be made a folder{}", Printable(dump_ir_),
                                           error ? ": " + error.message() : "; something else has that name"));
}

}  // namespace autoep

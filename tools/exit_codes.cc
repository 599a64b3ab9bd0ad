// SPDX-License-Identifier: Apache-2.0
// The table of exit codes.
#include "tools/exit_codes.h"

#include <fmt/format.h>

namespace autoep {
namespace {

constexpr ExitCode kExitCodes[] = {
    {Code::kOk, "done"},
    {Code::kDifferent, "compared, and different"},
    {Code::kUsage, "wrong usage or configuration"},
    {Code::kInput, "the input cannot be read or is malformed"},
    {Code::kNoMoe, "no MoE layer that can be rewritten"},
    {Code::kPlan, "the plan is impossible (expert-parallel size, placement)"},
    {Code::kVerify, "verification failed"},
    {Code::kOutput, "the output could not be written"},
    {Code::kPlugin, "plugin library, ABI, shard or process group"},
    {Code::kBatch, "some jobs of a batch failed"},
    {Code::kBug, "a fault of autoep itself"},
    {Code::kInterrupted, "interrupted (SIGINT)"},
    {Code::kTerminated, "terminated (SIGTERM)"},
};

}  // namespace

std::span<const ExitCode> ExitCodes() { return kExitCodes; }

std::string ExitCodeHelp() {
  std::string help = "Exit codes:\n";
  for (const ExitCode& row : kExitCodes) help += fmt::format("  {:>3}  {}\n", static_cast<int>(row.code), row.meaning);
  return help;
}

}  // namespace autoep
